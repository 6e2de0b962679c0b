"""Where LeRobot keeps the statistics of a policy, and how it uses them.

Since 0.4 they lie in the states of two pipelines beside the model; before, in buffers of the model:

    policy_preprocessor.json     its step normalizer_processor names a .safetensors with KEY.min, KEY.max, ...
    policy_postprocessor.json    its step unnormalizer_processor names another, for the actions
    model.safetensors            normalize_inputs.buffer_KEY.min, ..., unnormalize_outputs.buffer_action.min, ...
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy.interop import statistics
from diffpolicy.interop.reading import Settings, read_json, read_safetensors
from diffpolicy.system.plain import shown

ACTION = "action"
HARMLESS = {"to_batch_processor", "device_processor", "rename_observations_processor"}
EPS = 1e-8  # LeRobot's, added to standard deviations


class Statistics:
    """The statistics of one checkpoint.

    Args:
        folder: of the checkpoint.
        config: the content of its config.json.
        tensors: those of its model.
    """

    def __init__(self, folder: Path, config: Settings, tensors: Mapping[str, Tensor]) -> None:
        self._modes = config.get("normalization_mapping", dict[str, str], {})
        self._before, self._after = dict(tensors), dict(tensors)
        self._is_old = not (folder / "policy_preprocessor.json").is_file()
        if not self._is_old:
            self._before, self._modes = _step(folder, "policy_preprocessor.json", "normalizer_processor")
            self._after, _ = _step(folder, "policy_postprocessor.json", "unnormalizer_processor")

    def mode(self, kind: str) -> str:
        """MIN_MAX, MEAN_STD or IDENTITY, for STATE, ENV, VISUAL or ACTION."""
        return self._modes.get(kind, "IDENTITY")

    def of(self, key: str, kind: str, shape: tuple[int, ...]) -> dict[str, Tensor] | None:
        """Minimum and maximum, or mean and deviation, of a feature; None if it is not normalised.

        Raises:
            ValueError: they are missing, of another shape, or the mode is another.
        """
        mode, names = self.mode(kind), {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std"), "IDENTITY": ()}
        if mode not in names:
            raise ValueError(f"statistics: the normalisation {mode} of {key} is not imported; {', '.join(names)} are")
        found: dict[str, Tensor] = {}
        for name in names[mode]:
            value = (self._after if key == ACTION else self._before).get(self._name(key, name))
            if value is None:
                raise ValueError(f"statistics: {key} has no {name}, which {mode} needs")
            if value.numel() != torch.Size(shape).numel() or not bool(value.isfinite().all()):
                raise ValueError(f"statistics: {name} of {key} has shape {list(value.shape)}, or is not finite")
            found[name] = value.double().flatten()
        return found or None

    def normalizer(self, key: str, kind: str, features: int) -> tuple[Any, dict[str, Tensor]]:
        """Our normaliser of a vector: its settings and its buffers; raises ValueError as `of`."""
        found = self.of(key, kind, (features,))
        if found is None:
            return "none", statistics.identity(features)
        if "min" in found:
            return "limits", statistics.limits(found["min"], found["max"], is_pinned=key == ACTION)
        return "gaussian", statistics.gaussian(found["mean"], found["std"], 0.0 if key == ACTION else EPS)

    def _name(self, key: str, statistic: str) -> str:
        if not self._is_old:
            return f"{key}.{statistic}"
        part = "unnormalize_outputs" if key == ACTION else "normalize_inputs"
        return f"{part}.buffer_{key.replace('.', '_')}.{statistic}"


def _step(folder: Path, file: str, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the modes of a step of a pipeline."""
    pipeline = read_json(folder / file)
    found: tuple[dict[str, Tensor], dict[str, str]] = {}, {}
    for index, content in enumerate(pipeline.get("steps", list[Any])):
        step = Settings(content, f"{pipeline.where}: step {index}")
        kind = step.get("registry_name", str, "a class of your own")
        if kind == name:
            own = step.within("config")
            if "normalize_observation_keys" in own.content:
                raise ValueError(f"{step.where}: normalize_observation_keys is not imported; all are normalised")
            modes = own.get("norm_map", dict[str, str])
            state = step.get("state_file", str)
            if "/" in state or "\\" in state:
                raise ValueError(f"{step.where}: state_file {shown(state)} lies outside the folder, refused")
            found = read_safetensors(folder / state), modes
        elif kind not in HARMLESS or (kind.startswith("rename") and step.content.get("config", {}).get("rename_map")):
            raise ValueError(f"{step.where}: {shown(kind)} changes the data, which is not imported")
    return found
