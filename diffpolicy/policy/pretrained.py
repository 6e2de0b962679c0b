"""Saving and loading of policies of any kind as checkpoint folders."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from diffpolicy.policy import migration
from diffpolicy.policy.model_card import CARD, model_card
from diffpolicy.policy.protocol import Policy
from diffpolicy.policy.settings import PolicyConfig, check_metadata, policy_config
from diffpolicy.system import checkpoint, hub, tensor_file
from diffpolicy.system.plain import difference, shown_text
from diffpolicy.system.schema import OneOf, read
from diffpolicy.system.shipped import find_checkpoint
from diffpolicy.system.tables import lookup

Kind = TypeVar("Kind", bound=Policy)
WEIGHTS = "weights"  # the key of the type in which weights are stored, if it is not float32
NOT_METADATA = ("policy", "sha256", "format_version", WEIGHTS)


def write_pretrained(policy: Policy, folder: str | Path, dtype: str = "float32", source: str | None = None) -> None:
    """Write config.json, model.safetensors and a model card, README.md, into a new folder.

    Args:
        dtype: float32; or float16, in which weights take half the space. They are rounded to 11 bits and loaded as
            float32 again. Buffers, such as the statistics of normalisation, keep their precision.
        source: where the card says that the policy is to be loaded from; by default the folder's name.

    Raises:
        FileExistsError: the folder exists.
        ValueError: `dtype` is neither, or a weight is too large for it.
    """
    OneOf("float32", "float16").check(dtype, "save_pretrained: dtype")
    content, state = checkpoint_config(policy), policy.acting_state()
    if dtype == "float16":
        content, state = {**content, WEIGHTS: dtype}, {**state, **_halved(policy, state)}
    card = model_card(policy, source or Path(folder).name)
    checkpoint.write(Path(folder), content, {"model": state}, {CARD: card})


def push_to_hub(policy: Policy, name: str, private: bool = False, dtype: str = "float32") -> str:
    """Upload the policy and its model card to owner/name on the Hugging Face hub; returns the address.

    Raises:
        ConnectionError: the hub cannot be reached, or refuses, as without a token.
        ImportError: huggingface_hub is not installed.
        ValueError: the name is not of the form owner/name; or as `write_pretrained`.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_pretrained(policy, Path(folder, "policy"), dtype, name)
        return hub.uploaded(Path(folder, "policy"), name, private, "A policy of diffpolicy")


def checkpoint_config(policy: Policy) -> dict[str, Any]:
    """The policy's content of config.json: its settings and metadata."""
    return {"policy": dataclasses.asdict(policy.config), **policy.metadata}


def read_pretrained(folder: str | Path, kinds: Mapping[str, Callable[[PolicyConfig], Kind]]) -> Kind:
    """Load and verify the policy in a checkpoint folder, on disk or shipped, or a link to one, on the CPU.

    If there is none, a name like owner/name or owner/name@revision is looked up on the Hugging Face hub, unless there
    is a folder `owner`. What comes from there is read and checked like any other.

    Args:
        kinds: the kinds of policies to accept: name in settings -> class.

    Raises:
        ConnectionError: the hub cannot be reached.
        FileNotFoundError: there is no checkpoint.
        ImportError: it could only be on the hub, and huggingface_hub is not installed.
        ValueError: it is damaged or of another kind, a setting is unknown, missing, of the wrong type or out of range,
            or tensors are missing, unknown, not finite, or of the wrong shape or dtype.
    """
    return checkpoint.load(_found(folder), lambda saved: _read(saved, kinds))


def _found(name: str | Path) -> Path:
    """The folder of a checkpoint: on disk, shipped, or on the hub."""
    try:
        return find_checkpoint(name)
    except FileNotFoundError as error:
        if not hub.is_name(name) or Path(str(name).partition("/")[0]).exists():  # then it is a folder misspelled
            raise
        try:
            return hub.downloaded(str(name))
        except (ConnectionError, FileNotFoundError, ImportError) as other:
            raise type(other)(f"{error}. {other}") from other


def _read(saved: checkpoint.Saved, kinds: Mapping[str, Callable[[PolicyConfig], Kind]]) -> Kind:
    where = f"checkpoint: {saved.folder}"
    content = migration.migrated(saved.config, where)
    config = policy_config(content["policy"], f"{where}: policy")
    make = lookup(kinds, f"{where}: policy", config.name)
    metadata = {key: value for key, value in content.items() if key not in NOT_METADATA}
    check_metadata(metadata, where)
    with torch.device("meta"):  # without memory or time: the file shows whether the settings are what was saved
        expected = tensor_file.specs(_built(make, config, where).acting_state())
    stored = read(Annotated[str, OneOf("float32", "float16")], content.get(WEIGHTS, "float32"), f"{where}: {WEIGHTS}")
    tensors = saved.tensors("model", expected, _widened if stored == "float16" else migration.migrated_tensors)
    policy = _built(make, config, where)
    as_read = dataclasses.asdict(policy.config)
    if saved.version == checkpoint.FORMAT_VERSION and (told := difference(content["policy"], as_read)):
        raise ValueError(f"{where}: policy: {told}")
    policy.metadata = metadata
    policy.load_state_dict(tensors, strict=False)
    policy.check_fitted()
    tensor_file.check_finite(tensors, where)
    return policy


def _halved(policy: Policy, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters in `state` as float16."""
    halved = {name: state[name].half() for name, _ in policy.named_parameters() if name in state}
    for name, value in halved.items():
        if bool(value.isinf().any()) and bool(state[name].isfinite().all()):
            raise ValueError(
                f"save_pretrained: {name} holds {float(state[name].abs().max()):.4g}, and float16 ends at 65504; save "
                "with dtype='float32'"
            )
    return halved


def _widened(version: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose weights are stored as float16, as `migrated_tensors` gives others."""
    found = migration.migrated_tensors(version, tensors)
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in found.items()}


def _built(make: Callable[[PolicyConfig], Kind], config: PolicyConfig, where: str) -> Kind:
    try:
        return make(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except (RuntimeError, OverflowError, MemoryError) as error:  # sizes that torch cannot count
        raise ValueError(f"{where}: its settings describe no policy: {shown_text(str(error))}") from error
