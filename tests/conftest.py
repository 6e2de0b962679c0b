"""Policies and checkpoints that several test files share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from traced import Traced

from diffpolicy.networks.backbones import unet1d
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.networks.layers import products
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.policy.settings import PolicyConfig
from diffpolicy.system import replay as graph

REPOSITORY = Path(__file__).parents[1]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # e.g. in a detached shell; child processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Many tests compare bits between processes, which a choice by time does not promise.
os.environ.setdefault(products.VARIABLE, "stored")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use"))


@pytest.fixture(autouse=True)
def float32_is_float32(request: pytest.FixtureRequest) -> Iterator[None]:
    """Torch's convolutions on a GPU would round their inputs to TF32, which keeps 10 bits."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def small_policy() -> DiffusionPolicy:
    """An untrained policy with observations in [0, 1] and actions in [0, 10]; a new one for each test."""
    torch.manual_seed(0)
    observations = {"position": 3, "goal": 2}
    policy = DiffusionPolicy(PolicyConfig(observations, 2, model=UNet1dConfig(widths=[16, 32], time_embedding_dim=16)))
    share = torch.linspace(0.0, 1.0, 100)[:, None]
    policy.fit({key: share.expand(-1, dim) for key, dim in observations.items()}, 10.0 * share.expand(-1, 2))
    return policy.eval()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make recordings work on the CPU, where the network is then called as on a GPU."""
    monkeypatch.setattr(unet1d, "may_unroll", lambda x: False)
    monkeypatch.setattr(graph, "RECORDERS", {"cpu": Traced})


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small, fast, untrained policy with the observations and actions of Push-T."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig({"keypoints": 20}, 2, model=UNet1dConfig(widths=[8, 16, 32])))
    pixels = torch.linspace(0.0, 512.0, 100)[:, None]
    policy.fit({"keypoints": pixels.expand(-1, 20)}, pixels.expand(-1, 2))
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    policy.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shipped_checkpoint() -> Path:
    """The checkpoint that ships with the repository."""
    return REPOSITORY / "data" / "checkpoints" / "pusht_small"
