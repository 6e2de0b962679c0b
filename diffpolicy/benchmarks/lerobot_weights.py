"""LeRobot's names for the weights of our networks, which have the same shapes: U-Net, and ResNet-18 of one camera."""

import re

NAMES = {  # part of a policy -> [(pattern of our parameter names, LeRobot's name)], applied in this order
    "network": [
        (r"^time_encoder\.", "diffusion_step_encoder."),
        (r"^(down|up)\.(\d+)\.first\.", r"\1_modules.\2.0."),
        (r"^(down|up)\.(\d+)\.second\.", r"\1_modules.\2.1."),
        (r"^middle\.first\.", "mid_modules.0."),
        (r"^middle\.second\.", "mid_modules.1."),
        (r"^shrink\.(\d+)\.", r"down_modules.\1.2."),
        (r"^grow\.(\d+)\.", r"up_modules.\1.2."),
        (r"^head\.0\.", "final_conv.0.block."),
        (r"^head\.1\.", "final_conv.1."),
        (r"\.first\.", ".conv1.block."),
        (r"\.second\.", ".conv2.block."),
        (r"\.film\.", ".cond_encoder."),
        (r"\.residual\.", ".residual_conv."),
    ],
    "encoder": [
        (r"^eyes\.0\.conv1\.", "backbone.0."),
        (r"^eyes\.0\.norm1\.", "backbone.1."),
        *((rf"^eyes\.0\.layer{stage}\.", f"backbone.{3 + stage}.") for stage in (1, 2, 3, 4)),
        (r"\.norm([12])\.", r".bn\1."),
        (r"^eyes\.0\.pool\.maps\.", "pool.nets."),
        (r"^eyes\.0\.head\.", "out."),
    ],
}


def lerobot_name(name: str) -> str:
    """LeRobot's name for a parameter of `network` or `encoder`, after the same first word."""
    part, _, rest = name.partition(".")
    for ours, theirs in NAMES[part]:
        rest = re.sub(ours, theirs, rest)
    return f"{part}.{rest}"
