"""What a run starts from besides random weights: another checkpoint, its own on the same machine, a trained codec."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from diffpolicy.codecs.codec import LearnedCodec, Windows
from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.policy.kinds import load_policy
from diffpolicy.policy.protocol import Policy
from diffpolicy.training.batches import mixed_seed
from diffpolicy.training.run_settings import differences, flattened, learning_rate
from diffpolicy.training.settings import TrainerConfig

OUTSIDE = 1e-3  # how far beyond the limits a rounded action may lie, in encoded units


def initialize(policy: Policy, source: str, data: Demonstrations) -> None:
    """Load the weights and the normalisation of the checkpoint `source` into an untrained policy (fine-tuning).

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, or its settings are not those of the policy; the message names the differences.
    """
    other = load_policy(source)
    before, now = flattened(asdict(other.config)), flattened(asdict(policy.config))
    if different := differences(before, now, "there"):
        raise ValueError(f"init_from: the settings of {source} differ: {', '.join(different)}; give the same")
    policy.load_state_dict(other.acting_state(), strict=False)
    policy.metadata["init_from"] = {"checkpoint": source, "training_step": other.metadata.get("step")}
    if policy.codec.limits is not None:
        low, high = policy.codec.limits
        encoded = policy.codec.encode(data.actions[:, None])
        outside = ((encoded < low - OUTSIDE) | (encoded > high + OUTSIDE)).flatten(1).any(1).float().mean()
        if outside > 0:
            warnings.warn(
                f"init_from: {outside:.1%} of the actions lie outside the range that {source} was trained on, and are "
                "clipped when the policy acts; to fit the normalisation to these data, train without init_from",
                stacklevel=3,
            )


def learn_codec(policy: Policy, windows: Windows, seed: int) -> None:
    """Train the codec of a policy on the windows of actions, if it learns and no checkpoint has trained it.

    Raises:
        ValueError: training fails, see `LearnedCodec`.
    """
    if isinstance(policy.codec, LearnedCodec) and not policy.codec.is_fitted:
        policy.codec.learn(windows, torch.Generator().manual_seed(mixed_seed(seed, 4)))


def warn_of_other_conditions(found: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Warn, naming the differences, if a run is resumed under other conditions than it was saved under."""
    different = [name for name in now if name in found and found[name] != now[name]]
    if different:
        listed = ", ".join(f"{name} {found[name]} before, {now[name]} now" for name in different)
        warnings.warn(
            f"resume: {listed}; the result may differ in the last bits from an uninterrupted run", stacklevel=3
        )


def warn_of_extension(before: int, trainer: TrainerConfig, step: int) -> None:
    """Warn if a run of `before` steps is extended: its learning rate jumps to the schedule of the new length."""
    if trainer.steps > before:
        then, now = (learning_rate(replace(trainer, steps=steps), step) for steps in (before, trainer.steps))
        warnings.warn(
            f"resume: trainer.steps is raised from {before} to {trainer.steps}. The learning rate follows the schedule "
            f"of {trainer.steps} steps from here on: at step {step} it is {now:.3g}, not {then:.3g}",
            stacklevel=3,
        )
