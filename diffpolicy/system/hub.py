"""Checkpoints on the Hugging Face hub, by the package huggingface_hub (extra `hub`).

The package reads the token, the cache and the address from its own environment variables (HF_TOKEN, HF_HOME,
HF_ENDPOINT, HF_HUB_OFFLINE).
"""

import importlib
import re
from pathlib import Path
from typing import Any

NAME = re.compile(r"(?P<name>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>\w[\w./-]{0,127}))?")
FILES = ("config.json", "model.safetensors")  # of a checkpoint; nothing else is downloaded


def is_name(name: str | Path) -> bool:
    """Whether it could be owner/name or owner/name@revision on the hub."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def downloaded(name: str) -> Path:
    """The folder of a checkpoint in the package's cache, with its files from the hub, or without network from before.

    Args:
        name: owner/name, or owner/name@revision with a branch, a tag or a commit.

    Raises:
        ConnectionError: the hub cannot be reached, or refuses.
        FileNotFoundError: there is no such checkpoint.
        ImportError: the package is not installed.
    """
    hub, found = _package(f"to load {name!r} from the Hugging Face hub"), NAME.fullmatch(name)
    assert found is not None, "callers ask is_name"
    missing = (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError, hub.errors.EntryNotFoundError)
    try:
        config = Path(hub.hf_hub_download(found["name"], FILES[0], revision=found["revision"]))
        commit = config.parent.name  # so that both files are of one version
        return Path(hub.hf_hub_download(found["name"], FILES[1], revision=commit)).parent
    except hub.errors.LocalEntryNotFoundError as error:  # also one of `missing`, but it means that no answer came
        raise ConnectionError(f"the Hugging Face hub gave no answer on {name!r}: {_told(error)}") from error
    except missing as error:
        raise FileNotFoundError(
            f"on the Hugging Face hub {name!r} is no checkpoint either, or a private one, which needs a token, by "
            f"'hf auth login': {_told(error)}"
        ) from error
    except Exception as error:  # of the package's HTTP library, which differs between versions
        raise ConnectionError(f"the Hugging Face hub failed on {name!r}: {_told(error)}") from error


def uploaded(folder: Path, name: str, private: bool, message: str) -> str:
    """Upload the files of a folder to owner/name on the hub, which is made if it does not exist; returns its address.

    Raises:
        ConnectionError: the hub cannot be reached, or refuses.
        ImportError: the package is not installed.
        ValueError: the name is not of the form owner/name.
    """
    found = NAME.fullmatch(name)
    if found is None or found["revision"] is not None:
        raise ValueError(f"push_to_hub: {name!r} is no name on the hub, expected owner/name")
    hub = _package(f"to upload {name!r} to the Hugging Face hub")
    try:
        api = hub.HfApi()
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # of the package's HTTP library, which differs between versions
        raise ConnectionError(
            f"push_to_hub: {name!r}: the Hugging Face hub refused or failed: {_told(error)}; log in by 'hf auth login'"
        ) from error
    return address


def _package(purpose: str) -> Any:
    try:
        hub = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.errors")
        return hub
    except ImportError as error:
        raise ImportError(f"huggingface_hub is needed {purpose}; pip install 'diffpolicy[hub]'") from error


def _told(error: Exception) -> str:
    """The first line that an error of the package says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
