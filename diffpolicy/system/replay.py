"""Record a function of tensors once and replay it: on a GPU as a CUDA graph, with one launch for all kernels.

A recording reads its inputs from its own buffers. Its outputs are copied out, so that the next replay does not
overwrite them. Every other tensor that the function uses is read from the captured address.
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

MAX_RECORDINGS = 16  # per module; beyond that, the least recently used one is dropped


class Recorder(Protocol):
    """A way to record functions. Its recordings share memory, so only one of them is replayed at a time."""

    def record(
        self, function: Function, inputs: Sequence[Tensor], generators: Sequence[torch.Generator] = ()
    ) -> tuple[Replay, Sequence[Tensor]]:
        """Record `function(inputs)`; return the replay and the tensors in which it leaves its results.

        Args:
            generators: what `function` draws from, on the recorder's device. Recording leaves their states unchanged; a
                replay draws from the state that they have then.

        Raises:
            RuntimeError: `function` cannot be recorded.
        """
        ...

    def turn(self) -> contextlib.AbstractContextManager[object]:
        """The context in which to copy the inputs in, replay, and copy the outputs out."""
        ...


class CudaGraphs:
    """Records CUDA graphs that share one memory pool; this is safe because no two of them run at the same time."""

    _capture = threading.Lock()  # CUDA allows one capture at a time per process

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._done = torch.cuda.Event()

    def record(
        self, function: Function, inputs: Sequence[Tensor], generators: Sequence[torch.Generator] = ()
    ) -> tuple[Replay, Sequence[Tensor]]:
        """Capture `function(inputs)` as a graph; see `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        states = [one.get_state() for one in generators]
        for one in generators:
            graph.register_generator_state(one)
        with self._capture, torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):  # restores `before`, which a failed capture does not
                function(inputs)  # warm-up: loading kernels and choosing algorithms cannot be captured
                try:  # thread_local lets other threads use the GPU during the capture
                    with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                        outputs = function(inputs)
                except RuntimeError:
                    self._pool = torch.cuda.graph_pool_handle()  # the pool of a failed capture is unusable
                    raise
            before.wait_stream(self._stream)
        for one, state in zip(generators, states, strict=True):
            one.set_state(state)
        return graph.replay, outputs

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait on the GPU for the previous turn, which may belong to another thread and another stream."""
        with torch.cuda.device(self._device):
            torch.cuda.current_stream().wait_event(self._done)
            yield
            self._done.record()


RECORDERS: Mapping[str, Callable[[torch.device], Recorder]] = {"cuda": CudaGraphs}  # device type -> recorder


class Replays:
    """Recordings of functions that read the tensors of a module, made on first use.

    A copy starts empty, because it belongs to a copy of the module, whose tensors lie elsewhere.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: _Memory | None = None
        self._recorder: Recorder | None = None
        self._recordings: OrderedDict[Hashable, _Recording | None] = OrderedDict()  # None: cannot be recorded

    def __reduce__(self) -> tuple[type["Replays"], tuple[()]]:
        return Replays, ()

    def run(
        self,
        module: nn.Module,
        key: Hashable,
        function: Function,
        inputs: Sequence[Tensor],
        generators: Sequence[torch.Generator] = (),
    ) -> Sequence[Tensor]:
        """`function(inputs)`, replayed if the device of `inputs` has a recorder and the function can be recorded.

        A replay sees weights that change in place. If they are moved or replaced, everything is recorded again.

        Args:
            key: everything the function depends on besides `inputs` and the tensors of `module`. It is kept for as
                long as the recording, which keeps the tensors alive that the recording reads.
            generators: what `function` draws from; the same ones in every call.
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
                self._recordings[key] = _recorded(self._recorder, function, inputs, generators)
                if len(self._recordings) > MAX_RECORDINGS:
                    self._recordings.popitem(last=False)
            self._recordings.move_to_end(key)
            if recording := self._recordings[key]:
                return recording(inputs)
        return function(inputs)


class _Recording:
    """A recorded function with its input and output buffers."""

    def __init__(
        self,
        recorder: Recorder,
        function: Function,
        inputs: Sequence[Tensor],
        generators: Sequence[torch.Generator],
    ) -> None:
        self._recorder = recorder
        self._inputs = [one.clone() for one in inputs]
        self._replay, self._outputs = recorder.record(function, self._inputs, generators)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        with self._recorder.turn():
            torch._foreach_copy_(self._inputs, list(inputs))  # pyright: ignore
            self._replay()
            return [one.clone() for one in self._outputs]


def _recorded(
    recorder: Recorder, function: Function, inputs: Sequence[Tensor], generators: Sequence[torch.Generator]
) -> _Recording | None:
    try:
        return _Recording(recorder, function, inputs, generators)
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"compile: this cannot be captured and runs call by call: {reason}", RuntimeWarning, stacklevel=2)
        return None


class _Memory:
    """The addresses of the tensors of a module."""

    def __init__(self, module: nn.Module) -> None:
        places = [place for one in module.modules() for place in (one._modules, one._parameters, one._buffers)]
        self._parts = [(place, name, part) for place in places for name, part in place.items()]
        self._tensors = [part for _, _, part in self._parts if isinstance(part, Tensor)]
        self._addresses = [one.data_ptr() for one in self._tensors]

    def has_moved(self) -> bool:
        """Whether a tensor has moved, or a part of the module was replaced."""
        if any(place.get(name) is not part for place, name, part in self._parts):
            return True
        return self._addresses != [one.data_ptr() for one in self._tensors]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested dataclasses and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, list):
        for one in value:
            yield from tensors_in(one)


def with_tensors(value: Any, others: Mapping[int, Tensor]) -> Any:
    """A copy of nested dataclasses and lists with tensors replaced; `others` maps id(tensor) to its replacement."""
    if isinstance(value, Tensor):
        return others.get(id(value), value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: with_tensors(getattr(value, one.name), others) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    if isinstance(value, list):
        return [with_tensors(one, others) for one in value]
    return value
