"""Facts about every entry of `OBJECTIVES`, so that a new one inherits them: it trains, resumes, saves, loads, acts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import walk
from torch.testing import assert_close

from diffpolicy import DiffusionPolicy, PolicyConfig
from diffpolicy.networks.backbones.dit import DiTConfig
from diffpolicy.networks.backbones.transformer import TransformerConfig
from diffpolicy.networks.backbones.unet1d import UNet1dConfig
from diffpolicy.policy.analysis import PolicyAnalysis
from diffpolicy.policy.objective_choices import OBJECTIVES, build_objective
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.system.checkpoint import read_tensors
from diffpolicy.training.trainer import Trainer

BUILT = {name: build_objective(name) for name in OBJECTIVES}
ALONE = [name for name in OBJECTIVES if BUILT[name].teaching != "required"]
BASELINES = ["regression", "two_step_regression", "mixture_density", "variational"]
OF_NO_DENOISER = [name for name in OBJECTIVES if not BUILT[name].denoises]
BACKBONES: dict[str, Any] = {
    "unet1d": UNet1dConfig(widths=[8, 16], time_embedding_dim=8, groups=4),
    "transformer": TransformerConfig(width=16, layers=1, heads=2),
    "dit": DiTConfig(width=16, layers=1, heads=2),
}
OF_NETWORKS = [  # pairs that fit
    (name, model) for name in ALONE for model in BACKBONES if model == "dit" or not BUILT[name].sees_waypoint_levels
]
WINDOW = WindowConfig(horizon=8, n_obs_steps=2, n_action_steps=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return walk.record(tmp_path_factory.mktemp("walk") / "walk.zarr")


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a denoiser for those that need one."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    Trainer(walk.settings(data, diffusion={"name": "denoising", "num_levels": 50}, trainer={"steps": 8}), run).run()
    return str(run / "checkpoints" / "last")


def settings(name: str, data: Path, teacher: str, **changes: Any) -> Any:
    taught = teacher if BUILT[name].teaching == "required" else None
    short = {"steps": 4, "checkpoint_every": 2, "validate_every": 4, "log_every": 2, "warmup_steps": 1}
    network = {"model": BACKBONES["dit"]} if BUILT[name].sees_waypoint_levels else {}
    return walk.settings(data, diffusion=name, teacher=taught, trainer=short, **network, **changes)


def policy_with(name: str, model: str | None = None, observations: Any = None) -> DiffusionPolicy:
    """Untrained; observations lie in [0, 1], actions in [0, 10]."""
    model = model or ("dit" if BUILT[name].sees_waypoint_levels else "unet1d")
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig({"goal": 2}, 2, window=WINDOW, model=BACKBONES[model], diffusion=name))
    share = torch.linspace(0.0, 1.0, 50)[:, None].expand(-1, 2)
    policy.fit({"goal": share}, 10.0 * share)
    for parameter in policy.network.parameters():  # layers that begin at zero would hide what they compute
        torch.nn.init.normal_(parameter, std=0.2)
    return policy.eval()


def seen(batch: int) -> dict[str, torch.Tensor]:
    return {"goal": torch.rand(batch, 2, 2, generator=torch.Generator().manual_seed(5))}


def actions(batch: int) -> torch.Tensor:
    return 10.0 * torch.rand(batch, 8, 2, generator=torch.Generator().manual_seed(6))


def generators(batch: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(batch)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_trains_resumes_bit_exactly_saves_loads_and_acts(
    name: str, data: Path, teacher: str, tmp_path: Path
) -> None:
    config = settings(name, data, teacher)
    Trainer(config, tmp_path / "whole").run()
    cut = Trainer(config, tmp_path / "cut")
    cut.claim()
    for _ in range(2):
        cut._recent.add(*cut.train_step())
        cut.step += 1
    cut._save()
    cut.folder.release()
    resumed = Trainer(dataclasses.replace(config, resume=True), tmp_path / "cut")
    assert resumed.step == 2
    resumed.run()
    ends = [walk.tensors(tmp_path / run / "checkpoints" / "step_4") for run in ("whole", "cut")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    acting = read_tensors(tmp_path / "whole" / "checkpoints" / "step_4", "model")
    assert not any(key.startswith("objective.") for key in acting)
    policy = DiffusionPolicy.from_pretrained(tmp_path / "whole" / "checkpoints" / "step_4")
    observation = {"state": torch.rand(3, policy.config.window.n_obs_steps, 2)}
    plans = policy.predict_action_chunk(observation, generators(3)).plan
    alone = policy.predict_action_chunk({"state": observation["state"][1:2]}, generators(3)[1:2]).plan
    assert_close(plans[1:2], alone, rtol=0, atol=1e-4)  # products of other sizes round differently


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_of_a_batch_have_the_loss_of_the_whole(name: str) -> None:
    policy = policy_with(name)
    if BUILT[name].teaching == "required":
        policy.objective.learn_from(policy.network)

    def loss(rows: slice, part: tuple[int, int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return policy.loss({"goal": seen(6)["goal"][rows]}, actions(6)[rows], generator, part)

    whole = loss(slice(0, 6), (0, 1))
    parts = [loss(slice(0, 3), (0, 2)), loss(slice(3, 6), (1, 2))]
    assert_close(sum(parts) / 2, whole, rtol=1e-4, atol=0)  # float32 sums in another order


@pytest.mark.parametrize("name", OBJECTIVES)
def test_waypoints_that_count_once_have_the_plain_loss_and_others_do_not(name: str) -> None:
    policy = policy_with(name)
    if BUILT[name].teaching == "required":
        policy.objective.learn_from(policy.network)
        for parameter in policy.network.parameters():  # else it is its teacher, without an error
            torch.nn.init.normal_(parameter, std=0.2)

    def loss(counts: torch.Tensor | None = None) -> torch.Tensor:
        return policy.loss(seen(6), actions(6), torch.Generator().manual_seed(3), counts=counts)

    assert_close(loss(torch.ones(6, 8)), loss(), rtol=1e-6, atol=0)  # of float32
    assert abs(float((loss(torch.full((6, 8), 0.25)) - loss()).detach())) > 1e-4


@pytest.mark.parametrize(("name", "model"), OF_NETWORKS)
def test_every_network_learns_from_it_and_acts(name: str, model: str) -> None:
    policy = policy_with(name, model)
    policy.loss(seen(4), actions(4), torch.Generator().manual_seed(3)).backward()
    assert all(one.grad is not None and bool(one.grad.isfinite().all()) for one in policy.network.parameters())
    plan = policy.predict_action_chunk(seen(2), generators(2), constrain=lambda plan, row: plan.clamp(4.0, 4.5)).plan
    assert ((plan[:, 1:] >= 4.0) & (plan[:, 1:] <= 4.5)).all()


@pytest.mark.parametrize("name", OF_NO_DENOISER)
def test_what_needs_a_denoiser_is_refused_with_the_reason(name: str) -> None:
    policy = policy_with(name)
    if name != "progressive":  # it is sampled as a denoiser
        with pytest.raises(ValueError, match=rf"diffusion {name} was not trained for ddpm; give sampler="):
            policy.sampler("ddpm")
    with pytest.raises(ValueError, match=rf"need a denoiser at all levels .* trained with diffusion {name}"):
        PolicyAnalysis(policy).encode(seen(2), actions(2))


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_names_the_settings_of_its_sampler(name: str) -> None:
    policy = policy_with(name)
    own = policy.objective.sampler
    assert len(policy.sampler(own)) == len(policy.sampler()) == own["steps"]
    for change in ({"steps": own["steps"] + 1}, {"start": 0.5}, {"spacing": "leading"}):
        with pytest.raises(ValueError, match=r"plans in at most .* give sampler=direct .*, or sampler=auto"):
            policy.sampler({**own, **change})
    assert len(policy.sampler({**own, "steps": 1})) == 1


@pytest.mark.parametrize("name", BASELINES)
def test_plans_vary_with_the_noise_only_where_several_can_be_made(name: str) -> None:
    policy, same = policy_with(name), {"goal": torch.full((16, 2, 2), 0.3)}
    plans = policy.predict_action_chunk(same, generators(16)).plan
    spread = (plans - plans[:1]).abs().max()
    if "regression" in name:
        assert float(spread) < 1e-4
    else:
        assert float(spread) > 0.1
