"""What is derived from a run's settings: the policy, the learning rate, and what a resumed run must share."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from diffpolicy.codecs.normalizer import BLOCK_ROWS
from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.networks.encoders.resnet import Resnet
from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.policy.auxiliary import Auxiliary
from diffpolicy.policy.build import BACKBONES, CODECS, ENCODERS, resolved
from diffpolicy.policy.kinds import build_policy
from diffpolicy.policy.objective_choices import OBJECTIVES
from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system.plain import shown_text
from diffpolicy.system.schema import read_settings
from diffpolicy.system.tables import settings_of
from diffpolicy.training.settings import DataConfig, TrainConfig, TrainerConfig, image_formats

CHOICES = ("model", "diffusion", "encoder", "codec")
# These may differ on resume; those of the data do not change the batches.
REPORTING = ("log_every", "validate_every", "evaluate_every", "checkpoint_every")
WHERE = ("format", "stream", "workers", "cache")


def policy_settings(config: TrainConfig, data: Demonstrations) -> PolicyConfig:
    """The settings of the policy to train, with the settings of every choice filled in."""
    images = image_formats(config.data)
    specs = {
        key: ObservationSpec("image", tuple(value.shape[1:]), **asdict(images[key]))
        if key in images
        else vector(value.shape[1])
        for key, value in data.observations.items()
    }
    return resolved(
        PolicyConfig(
            observations=specs,
            action_dim=data.actions.shape[1],
            normalizer=config.data.normalizer,
            window=config.window,
            model=config.model,
            diffusion=config.diffusion,
            encoder=config.encoder,
            codec=config.codec,
            name=config.policy,
        )
    )


def new_policy(config: TrainConfig, data: Demonstrations) -> Policy:
    """Build the untrained policy and fit its normalisation; checks the sampler and guidance before any work is done.

    Raises:
        ValueError: settings or data do not fit together.
        FileNotFoundError, ImportError: there are no such weights as the encoder is to start from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        policy = build_policy(policy_settings(config, data))
        if weights := config.data.auxiliary_weights():
            _teach(policy, data, weights)
    if config.init_from is None and not config.resume:  # else a checkpoint has them all
        load_published_weights(policy)
    policy.sampling(config.sampler)
    if config.trainer.mask_padding and policy.codec.metric is None:
        raise ValueError(f"trainer: mask_padding needs a codec whose waypoints are separate, not {config.codec}")
    policy.fit(data.observations, data.actions)
    return policy


def load_published_weights(policy: Any) -> None:
    """Load the weights that the encoder's settings name, to start training from; raises as `Resnet.load_weights`."""
    for part in policy.modules():
        if isinstance(part, Resnet):
            part.load_weights()


def _teach(policy: Any, data: Demonstrations, weights: Mapping[str, float]) -> None:
    if not hasattr(policy, "auxiliary"):
        raise ValueError(f"data: auxiliary needs policy=diffusion; {policy.config.name} takes no auxiliary losses")
    policy.auxiliary = Auxiliary.of(policy.encoder, data.auxiliary, weights)


def learning_rate(trainer: TrainerConfig, step: int) -> float:
    """The learning rate of optimiser step `step`: linear warm-up, then a half cosine to 0 at the last step."""
    warmup = min(1.0, (step + 1) / max(1, trainer.warmup_steps))
    progress = max(0.0, (step - trainer.warmup_steps) / max(1, trainer.steps - trainer.warmup_steps))
    return trainer.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * progress))


def settings_of_run(config: TrainConfig, policy: Policy, data: Demonstrations) -> dict[str, Any]:
    """Everything that the weights and the choice of the best checkpoint depend on."""
    everything, acting = asdict(config), asdict(policy.config)
    return {
        **{name: everything[name] for name in ("task", "env", "window", "evaluation", "seed", "policy")},
        **{name: acting[name] for name in CHOICES},
        "sampler": asdict(policy.sampling(config.sampler).settings),
        "data": _without(everything["data"], WHERE),
        "trainer": _without(everything["trainer"], REPORTING),
        "data_sha256": fingerprint(data),
        "teacher_sha256": policy.metadata.get("teacher", {}).get("sha256"),
    }


def fingerprint(data: Demonstrations) -> str:
    """SHA-256 of the actions, observations, auxiliary arrays and episode ends."""
    digest = hashlib.sha256(data.episode_ends.tobytes())
    taught = [data.auxiliary[key] for key in sorted(data.auxiliary)]
    for values in (data.actions, *(data.observations[key] for key in sorted(data.observations)), *taught):
        for block in values.split(BLOCK_ROWS):
            digest.update(np.ascontiguousarray(block.numpy()).data)  # images would not fit into memory twice
    return digest.hexdigest()


def check_same_settings(policy: Policy, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the differences, unless a run of `policy` may resume with these settings.

    Settings that are newer than the run count as having their defaults. Data are compared by their content, wherever
    they are and however their columns are named. A run may get more steps.
    """
    before, now = (flattened(_compared(_filled(policy, one))) for one in (found, expected))
    if int(now["trainer.steps"]) > int(before["trainer.steps"]):
        before["trainer.steps"] = now["trainer.steps"]
    if different := differences(before, now, "in the checkpoint"):
        listed = ", ".join(different[:8])
        raise ValueError(f"resume: the settings differ: {listed}; use the same, or a new folder")


def differences(before: Mapping[str, str], now: Mapping[str, str], where: str) -> list[str]:
    """A phrase on each difference between flattened settings; `where` says where those before were found."""
    different = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    parents = {name.rpartition(".")[0] for name in different}  # None there, where the other has settings inside
    return [
        f"{shown_text(name)} {before.get(name, 'absent')} {where}, {now.get(name, 'absent')} given"
        for name in different
        if name not in parents
    ]


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the spelling of the data, whose content `data_sha256` covers."""
    data, observations = _without(settings["data"], ("path", "action")), settings["data"]["observations"]
    if isinstance(observations, Mapping):  # else it is damaged, and differs
        data["observations"] = sorted(observations)
    return {**settings, "data": data}


def _filled(policy: Policy, found: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the settings that a run of an earlier version does not have."""
    defaults = {"policy": "diffusion", "encoder": "low_dim", "codec": "normalizer", "teacher_sha256": None}
    filled = {**defaults, **found}
    choices = {"model": BACKBONES, "diffusion": OBJECTIVES, "encoder": ENCODERS, "codec": CODECS}
    for kind, table in choices.items():
        filled[kind] = asdict(settings_of(table, kind, filled.get(kind)))
    if filled.get("env") is not None:
        filled["env"] = asdict(read_settings(EnvConfig, filled["env"], "checkpoint: env"))
    filled["sampler"] = asdict(policy.sampling(filled.get("sampler")).settings)
    for name, schema, free in (("data", DataConfig, WHERE), ("trainer", TrainerConfig, REPORTING)):
        filled[name] = _without(asdict(read_settings(schema, filled.get(name), f"checkpoint: {name}")), free)
    return filled


def _without(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def flattened(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as {"trainer.steps": "5000"}."""
    if not isinstance(value, Mapping):
        return {prefix: shown_text(repr(list(value) if isinstance(value, tuple) else value))}
    return {k: v for key, item in value.items() for k, v in flattened(item, f"{prefix}.{key}".strip(".")).items()}
