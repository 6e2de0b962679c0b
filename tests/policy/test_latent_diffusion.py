"""A policy that diffuses in the latents of an autoencoder trains, resumes, acts and is saved like any other.

What needs waypoints or a density is refused with the reason.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from walk import record, settings, tensors

from diffpolicy import DiffusionPolicy, PolicyConfig, PolicyController
from diffpolicy.codecs.vae import VaeConfig
from diffpolicy.constraints import Box, Quantity
from diffpolicy.diffusion.guidance import by_cost, compose, inpaint
from diffpolicy.interop.onnx_export import export_onnx
from diffpolicy.policy.analysis import PolicyAnalysis
from diffpolicy.policy.settings import WindowConfig
from diffpolicy.safety import Safety
from diffpolicy.training.trainer import Trainer

CODEC = VaeConfig(length=4, features=2, width=16, layers=1, std=0.05, steps=150)
SEEN = {"state": torch.tensor([[[0.1, 0.5]] * 2])}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "walk.zarr")


@pytest.fixture(scope="module")
def run(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Trainer(settings(data_set, codec=CODEC), folder).run()
    return folder


@pytest.fixture
def policy(run: Path) -> DiffusionPolicy:
    return DiffusionPolicy.from_pretrained(run / "checkpoints" / "last")


def noise(batch: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(batch)]


def test_the_codec_is_trained_first_and_then_stays_as_it_is(run: Path, data_set: Path) -> None:
    trainer = Trainer(settings(data_set, codec=CODEC), run.parent / "other")
    before = {name: value.clone() for name, value in trainer.policy.state_dict().items() if name.startswith("codec.")}
    saved = tensors(run / "checkpoints" / "last")
    assert any(name.startswith("codec.autoencoder.encoder") for name in before)
    for name, value in before.items():
        assert torch.equal(saved[name], value), name


def test_a_resumed_run_ends_with_the_bit_same_weights(run: Path, data_set: Path, tmp_path: Path) -> None:
    half = settings(data_set, codec=CODEC)

    class Interrupted(Trainer):
        def _save(self, is_best: bool = False) -> None:
            super()._save(is_best)
            if self.step == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Interrupted(half, tmp_path).run()
    Trainer(dataclasses.replace(half, resume=True), tmp_path).run()
    expected, resumed = (tensors(folder / "checkpoints" / "last") for folder in (run, tmp_path))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_noise_has_the_shape_of_the_latent_and_plans_have_that_of_actions(policy: DiffusionPolicy) -> None:
    assert policy.codec.encoded_shape(16) == (4, 2)
    assert policy.predict_action_chunk(SEEN, noise()).plan.shape == (1, 16, 1)


def test_a_constraint_acts_once_on_the_decoded_plan_and_has_the_last_word(policy: DiffusionPolicy) -> None:
    seen: list[torch.Tensor] = []

    def shifted(plan: torch.Tensor, row: object) -> torch.Tensor:
        seen.append(plan)
        return plan + 1.0

    free = policy.predict_action_chunk(SEEN, noise()).plan
    plan = policy.predict_action_chunk(SEEN, noise(), constrain=shifted).plan
    assert len(seen) == 1
    assert_close(plan[:, 1:], free[:, 1:] + 1.0)
    assert torch.equal(plan[:, :1], free[:, :1]), "the past stays"


def test_a_guide_sees_latents_and_may_decode_them(policy: DiffusionPolicy) -> None:
    guide = by_cost(lambda latent: policy.codec.decode(latent).square().sum((1, 2)), 0.05)
    free = policy.predict_action_chunk(SEEN, noise()).plan
    guided = policy.predict_action_chunk(SEEN, noise(), guide=guide).plan
    assert float(guided.square().sum()) < float(free.square().sum())


def test_a_warm_start_encodes_the_last_plan(policy: DiffusionPolicy) -> None:
    sampling = policy.sampling({"name": "ddim", "steps": 8, "warm_start": 1})
    before = policy.predict_action_chunk(SEEN, noise()).plan
    plan = policy.predict_action_chunk(SEEN, noise(), sampling.warm, previous=before).plan
    assert plan.shape == before.shape


def test_what_needs_waypoints_or_a_density_is_refused_with_the_reason(policy: DiffusionPolicy) -> None:
    fixed = inpaint(torch.zeros(1, 16, 1), torch.ones(16, 1, dtype=torch.bool))
    for guide in (fixed, compose(by_cost(lambda latent: latent.sum((1, 2)), 0.1), fixed)):
        with pytest.raises(ValueError, match="inpaint fixes waypoints, and no number that VaeCodec encodes belongs"):
            policy.predict_action_chunk(SEEN, noise(), guide=guide)
    plan = torch.zeros(1, 16, 1)
    for asked in (
        lambda: PolicyAnalysis(policy).log_likelihood(SEEN, plan),
        lambda: PolicyAnalysis(policy).elbo(SEEN, plan, noise()[0]),
    ):
        with pytest.raises(ValueError, match="plans have no density, because the policy's VaeCodec is not invertible"):
            asked()
    with pytest.raises(ValueError, match="encoded by VaeCodec, which has no metric"):
        PolicyController(policy, safety=Safety([Box(-1.0, 1.0, Quantity("commands"))], period_s=0.1))
    with pytest.raises(ValueError, match=r"threshold 0\.9 needs actions encoded into"):
        policy.sampling({"name": "ddim", "guidance": {"threshold": 0.9}})


def test_masked_padding_needs_waypoints(data_set: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mask_padding needs a codec whose waypoints are separate"):
        Trainer(settings(data_set, codec=CODEC, trainer={"mask_padding": True}), tmp_path)


def test_a_codec_that_has_not_learned_is_named_before_it_is_used() -> None:
    policy = DiffusionPolicy(PolicyConfig({"state": 2}, 1, window=WindowConfig(16, 2, 8), codec=CODEC))
    policy.fit({"state": torch.rand(50, 2)}, torch.rand(50, 1))
    with pytest.raises(ValueError, match=r"no normalisation statistics for action; call fit and codec\.learn first"):
        policy.predict_action_chunk(SEEN, noise())


def test_fine_tuning_keeps_the_codec(run: Path, data_set: Path, tmp_path: Path) -> None:
    source = str(run / "checkpoints" / "last")
    tuned = Trainer(settings(data_set, codec=CODEC, init_from=source, seed=5), tmp_path).policy.state_dict()
    saved = tensors(run / "checkpoints" / "last")
    assert all(torch.equal(saved[name], value) for name, value in tuned.items() if name.startswith("codec."))


def test_inversion_returns_the_decoded_plan(policy: DiffusionPolicy) -> None:
    analysis = PolicyAnalysis(policy)
    plan = policy.predict_action_chunk(SEEN, noise(), policy.sampler("ddim", 50)).plan
    back = analysis.decode(SEEN, analysis.encode(SEEN, plan, method="rk4"), method="rk4")
    assert float((back - plan).square().mean().sqrt()) < 0.2  # of a walk over 2; the network has hardly been trained


def test_its_exported_loop_is_the_same(policy: DiffusionPolicy, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = export_onnx(policy, tmp_path / "onnx", parts=["policy"])
    assert np.isfinite(found["policy"])
