"""Recording on a CPU: torch traces the calls and runs the traced graph, which knows nothing of the Python around it."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from diffpolicy.graph import Function, Replay


class Traced:
    """A `Recorder`: whatever a function reads on the host, or does besides calling torch, is missing in its replays."""

    def __init__(self, device: torch.device) -> None:
        self.recorded = 0

    def record(self, function: Function, inputs: Sequence[Tensor]) -> tuple[Replay, Sequence[Tensor]]:
        graph = make_fx(lambda *tensors: list(function(tensors)))(*inputs)
        outputs = [one.clone() for one in graph(*inputs)]
        self.recorded += 1

        def replay() -> None:
            for output, made in zip(outputs, graph(*inputs), strict=True):
                output.copy_(made)

        return replay, outputs

    def turn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
