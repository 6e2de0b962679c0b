"""One ONNX file: traced from a module, and run by onnxruntime beside it."""

import importlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diffpolicy.interop.onnx_parts import Part
from diffpolicy.policy.diffusion import DiffusionPolicy

BATCHES = (2, 1, 3)  # the one that is traced, and others that the file must take as well
LIMIT = 1e-4  # of encoded actions, about [-1, 1]: some ten times what float32 rounds in a long loop
OF_ACTIONS = ("actions", "plan")  # outputs in physical units
DOUBLED = 4 * float(np.finfo(np.float32).eps)  # of a physical value: what rounding it twice may add


def exported(part: Part, opset: int, texts: Mapping[str, str]) -> bytes:
    """The content of the file of `part`, with `texts` as its metadata; raises ImportError without the package onnx."""
    onnx = needed("onnx")
    inputs, buffer = part.inputs(BATCHES[0]), io.BytesIO()
    places = {name: part.batch_at.get(name, 0) for name in (*inputs, *part.outputs)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes are compared while tracing; and there is a newer exporter with needs
        torch.onnx.export(
            part.module,
            tuple(inputs.values()),
            buffer,  # pyright: ignore[reportArgumentType]: any file is taken
            input_names=list(inputs),
            output_names=list(part.outputs),
            dynamic_axes={name: {place: "batch"} for name, place in places.items() if place is not None},
            opset_version=opset,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    for name, text in texts.items():
        model.metadata_props.add(key=name, value=text)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def difference(part: Part, data: bytes, policy: DiffusionPolicy, where: str) -> float:
    """The largest difference between what onnxruntime and torch compute, at several batch sizes, in encoded units.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: it is above LIMIT, or the file does not take another batch size.
    """
    runtime, worst = needed("onnxruntime"), 0.0
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch in BATCHES:
        inputs = part.inputs(batch)
        expected = part.module(*inputs.values())
        try:
            found = session.run(None, {name: value.cpu().numpy() for name, value in inputs.items()})
        except Exception as error:  # onnxruntime has errors of its own, which inherit from Exception alone
            raise ValueError(f"{where}: does not run with batch {batch}: {str(error).splitlines()[0]}") from error
        pairs = zip(part.outputs, found, expected, strict=True)
        worst = max(worst, *(_apart(name, one, other.cpu().numpy(), policy) for name, one, other in pairs))
    if not worst <= LIMIT:
        raise ValueError(f"{where}: differs from torch by {worst:.1e} of encoded units, expected at most {LIMIT}")
    return worst


def needed(name: str) -> Any:
    """Import a package of the extra `onnx`; raises ImportError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"export_onnx: the package {name} is missing; pip install 'diffpolicy[onnx]'") from error


def _apart(name: str, found: np.ndarray, expected: np.ndarray, policy: DiffusionPolicy) -> float:
    """The largest difference; of actions in encoded units, of features by the largest of them if that is above 1."""
    if found.shape != expected.shape:
        return float("inf")
    apart = np.abs(found.astype(np.float64) - expected)
    if name in OF_ACTIONS:
        apart = np.maximum(apart - DOUBLED * np.abs(expected), 0.0)
        if policy.codec.metric is not None:
            return float((apart * policy.codec.metric.sqrt().cpu().numpy()).max())
    return float(apart.max() / max(1.0, np.abs(expected).max()))
