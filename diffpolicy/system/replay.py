"""Functions of tensors, recorded once and then replayed: on a GPU as CUDA graphs, with one launch for all kernels.

A recording reads its inputs from buffers of its own, and what it returns is copied out, so that the next replay does
not overwrite it. All else that the function reads, it reads where that lay when it was recorded.
"""

import contextlib
import dataclasses
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Replay = Callable[[], object]

MAX_RECORDINGS = 16  # of one module; the least recently used one goes


class Recorder(Protocol):
    """A way to record; what it has recorded is replayed by one at a time, in turns."""

    def record(self, function: Function, inputs: Sequence[Tensor]) -> tuple[Replay, Sequence[Tensor]]:
        """A call that works on `inputs` as `function` did, and leaves its results in the tensors beside it.

        Raises:
            RuntimeError: `function` cannot be recorded.
        """
        ...

    def turn(self) -> contextlib.AbstractContextManager[object]:
        """To be entered for copying inputs in, replaying, copying outputs out."""
        ...


class CudaGraphs:
    """CUDA graphs in one pool of memory, which is free for all of them since no two ever run at a time."""

    _capture = threading.Lock()  # CUDA's: only one at a time in a process

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._done = torch.cuda.Event()

    def record(self, function: Function, inputs: Sequence[Tensor]) -> tuple[Replay, Sequence[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        with self._capture, torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):  # goes back to `before`, which a capture that fails does not
                function(inputs)  # loads kernels, chooses algorithms, copies constants: what cannot be captured
                try:  # another thread may go on using the GPU meanwhile: thread_local
                    with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                        outputs = function(inputs)
                except RuntimeError:
                    self._pool = torch.cuda.graph_pool_handle()  # that of a failed capture may not be used again
                    raise
            before.wait_stream(self._stream)
        return graph.replay, outputs

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Waits, on the GPU, for the turn before, which may have been another thread's on another stream."""
        with torch.cuda.device(self._device):
            torch.cuda.current_stream().wait_event(self._done)
            yield
            self._done.record()


RECORDERS: Mapping[str, Callable[[torch.device], Recorder]] = {"cuda": CudaGraphs}  # by the type of device


class Replays:
    """Recordings of functions that read the tensors of `module`, made when they are first called for.

    A copy of it is empty: it would belong to a copy of the module.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: _Memory | None = None
        self._recorder: Recorder | None = None
        self._recordings: OrderedDict[Hashable, _Recording | None] = OrderedDict()  # None: cannot be recorded

    def __reduce__(self) -> tuple[type["Replays"], tuple[()]]:
        return Replays, ()

    def run(self, module: nn.Module, key: Hashable, function: Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """What `function` makes of `inputs`; replayed, where there is a recorder for their device and it can record it.

        Weights that change in place are seen by the replay; once they lie elsewhere, all is recorded anew.

        Args:
            key: whatever the function depends on, besides `inputs` and the tensors of `module`. It is kept as long as
                the recording, and with it what the recording reads.
        """
        device = inputs[0].device
        if device.type not in RECORDERS or torch.is_autocast_enabled(device.type):  # autocast keeps copies of weights
            return function(inputs)
        key = (key, *((one.device, one.dtype, one.shape) for one in inputs))
        with self._lock:
            if self._recorder is None or self._memory is None or self._memory.has_moved():
                self._recordings.clear()
                self._recorder, self._memory = RECORDERS[device.type](device), _Memory(module)
            if key not in self._recordings:
                self._recordings[key] = _recorded(self._recorder, function, inputs)
                if len(self._recordings) > MAX_RECORDINGS:
                    self._recordings.popitem(last=False)
            self._recordings.move_to_end(key)
            if recording := self._recordings[key]:
                return recording(inputs)
        return function(inputs)


class _Recording:
    """A recorded function, its buffers and what it leaves behind."""

    def __init__(self, recorder: Recorder, function: Function, inputs: Sequence[Tensor]) -> None:
        self._recorder = recorder
        self._inputs = [one.clone() for one in inputs]
        self._replay, self._outputs = recorder.record(function, self._inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        with self._recorder.turn():
            torch._foreach_copy_(self._inputs, list(inputs))  # pyright: ignore
            self._replay()
            return [one.clone() for one in self._outputs]


def _recorded(recorder: Recorder, function: Function, inputs: Sequence[Tensor]) -> _Recording | None:
    try:
        return _Recording(recorder, function, inputs)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"compile: this cannot be captured and runs call by call: {reason}", RuntimeWarning, stacklevel=2)
        return None


class _Memory:
    """Where the tensors of a module lie."""

    def __init__(self, module: nn.Module) -> None:
        places = [place for one in module.modules() for place in (one._modules, one._parameters, one._buffers)]
        self._parts = [(place, name, part) for place in places for name, part in place.items()]
        self._tensors = [part for _, _, part in self._parts if isinstance(part, Tensor)]
        self._addresses = [one.data_ptr() for one in self._tensors]

    def has_moved(self) -> bool:
        """Whether one of them, or a part of the module, was exchanged."""
        if any(place.get(name) is not part for place, name, part in self._parts):
            return True
        return self._addresses != [one.data_ptr() for one in self._tensors]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Those in nested dataclasses and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, list):
        for one in value:
            yield from tensors_in(one)


def with_tensors(value: Any, others: Mapping[int, Tensor]) -> Any:
    """A copy of nested dataclasses and lists, with other tensors in the place of those with these ids."""
    if isinstance(value, Tensor):
        return others.get(id(value), value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: with_tensors(getattr(value, one.name), others) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    if isinstance(value, list):
        return [with_tensors(one, others) for one in value]
    return value
