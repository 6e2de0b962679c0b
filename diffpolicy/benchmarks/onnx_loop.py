"""The contestant `onnx` of the inference benchmark: the whole loop as one file that onnxruntime runs."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffpolicy.interop.onnx_export import export_onnx
from diffpolicy.policy.diffusion import DiffusionPolicy


def exported_loop(
    policy: DiffusionPolicy, sampler: str, steps: int, observation: Mapping[str, Tensor]
) -> Callable[[], Tensor]:
    """A function that plans for `observation` as `predict_action_chunk` does with the generators 0, 1, ...: [B, H, A].

    It uses as many threads as torch does at the time of a call.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(policy, f"{folder}/out", sampler, steps, parts=["policy"])
        data = Path(folder, "out", "policy.onnx").read_bytes()
    shape = len(policy.sampler(sampler, steps)) + 1, *policy.codec.encoded_shape(policy.config.window.horizon)
    seen, seeds = (
        {key: value.numpy() for key, value in observation.items()},
        range(len(next(iter(observation.values())))),
    )
    sessions: dict[int, Any] = {}

    def session() -> Any:
        threads = torch.get_num_threads()
        if threads not in sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            sessions[threads] = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return sessions[threads]

    def plan() -> Tensor:
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.from_numpy(session().run(["plan"], {"noise": torch.stack(noise, dim=1).numpy(), **seen})[0])

    return plan
