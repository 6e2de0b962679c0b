"""LeRobot's names for the weights of our networks, which have the same shapes: U-Net, and ResNet-18 of one camera."""

import re

from diffpolicy.interop.unet_names import LEROBOT, published_name

ENCODER_NAMES = [  # (pattern of our parameter names, LeRobot's name), applied in this order
    (r"^eyes\.0\.conv1\.", "backbone.0."),
    (r"^eyes\.0\.norm1\.", "backbone.1."),
    *((rf"^eyes\.0\.layer{stage}\.", f"backbone.{3 + stage}.") for stage in (1, 2, 3, 4)),
    (r"\.norm([12])\.", r".bn\1."),
    (r"^eyes\.0\.pool\.maps\.", "pool.nets."),
    (r"^eyes\.0\.head\.", "out."),
]


def lerobot_name(name: str) -> str:
    """LeRobot's name for a parameter of `network` or `encoder`, after the same first word."""
    part, _, rest = name.partition(".")
    if part == "network":
        return f"network.{published_name(rest, LEROBOT).removeprefix(LEROBOT.prefix)}"
    for ours, theirs in ENCODER_NAMES:
        rest = re.sub(ours, theirs, rest)
    return f"encoder.{rest}"
