"""Every entry of the tables of encoders, backbones, codecs and data formats keeps to its protocol; so does the second
user of each in seams.py. A new entry inherits these."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seams import CosineCodec, NpzFolder, TokenEncoder, TokenReader
from torch.testing import assert_close
from traced import MODELS
from walk import record

from diffpolicy import DiffusionPolicy
from diffpolicy.formats import convert, open_recording
from diffpolicy.formats.table import WriteSettings
from diffpolicy.networks.condition import Condition, ConditionShape
from diffpolicy.networks.observation import ObservationSpec, vector
from diffpolicy.policy.build import BACKBONES, CODECS, ENCODERS
from diffpolicy.policy.settings import PolicyConfig, WindowConfig
from diffpolicy.system.tables import made
from diffpolicy.training.data_formats import FORMATS

SEES = {"goal": vector(2), "position": vector(3)}
SHAPE = (8, 2)
GIVEN = ConditionShape(vector=(10,), tokens=(4, 16))
HAS_LEVELS = ("dit", "reader")  # backbones that take a time for each waypoint


def specs_for(name: str) -> dict[str, ObservationSpec]:
    """What this encoder can see: vectors, and with most encoders two cameras."""
    cameras = {"front": ObservationSpec("image", (48, 48, 3)), "wrist": ObservationSpec("image", (48, 48, 3))}
    return SEES if name == "low_dim" else {**SEES, **cameras}


def encoders() -> dict[str, Any]:
    torch.manual_seed(0)
    ours = {name: made(ENCODERS, "encoder", name, specs_for(name), 2) for name in ENCODERS}
    return {**ours, "tokens": TokenEncoder(specs_for("tokens"), 2)}


def drawn(specs: dict[str, ObservationSpec], batch: int, steps: int = 2) -> dict[str, torch.Tensor]:
    shapes = {key: (batch, steps, *spec.shape) for key, spec in specs.items()}
    images = {k: torch.randint(256, shapes[k], dtype=torch.uint8) for k, spec in specs.items() if spec.kind == "image"}
    return {key: images[key] if key in images else torch.randn(shape) for key, shape in shapes.items()}


def backbones() -> dict[str, Any]:
    torch.manual_seed(0)
    ours = {name: made(BACKBONES, "model", name, SHAPE, GIVEN) for name in BACKBONES}
    networks = {**ours, "reader": TokenReader.from_settings(None, SHAPE, GIVEN)}
    for network in networks.values():
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))  # some layers begin with zeros
    return networks


def codecs() -> dict[str, Any]:
    policy = PolicyConfig(SEES, 2, window=WindowConfig(SHAPE[0], 2, 4))
    return {**{name: made(CODECS, "codec", name, policy) for name in CODECS}, "cosines": CosineCodec(2, SHAPE[0])}


@pytest.mark.parametrize("name", encoders())
def test_an_encoder_gives_what_it_says_row_by_row(name: str) -> None:
    encoder = encoders()[name]
    seen = drawn(specs_for(name), 3)
    found, alone = encoder(seen), encoder({key: value[1:2] for key, value in seen.items()})
    for field, shape in encoder.output.given().items():
        value = getattr(found, field)
        assert value.shape == (3, *shape)
        assert_close(getattr(alone, field), value[1:2], rtol=0, atol=1e-5)  # products of another size, in float32
    assert {f for f in ("vector", "tokens") if getattr(found, f) is not None} == set(encoder.output.given())


@pytest.mark.parametrize("name", encoders())
def test_an_encoder_augments_each_part_of_a_batch_as_the_whole(name: str) -> None:
    encoder, seen = encoders()[name], drawn(specs_for(name), 6)
    before = {key: value.clone() for key, value in seen.items()}
    whole = encoder.augmented(seen, torch.Generator().manual_seed(3))
    assert encoder(whole).fields(tuple(encoder.output.given())), "it encodes what it augments"
    for index in (0, 1):
        half = {key: value[3 * index : 3 * index + 3] for key, value in seen.items()}
        part = encoder.augmented(half, torch.Generator().manual_seed(3), (index, 2))
        assert all(torch.equal(part[key], whole[key][3 * index : 3 * index + 3]) for key in seen)
    assert all(torch.equal(seen[key], before[key]) for key in seen), "the data stay as they are"


@pytest.mark.parametrize("name", encoders())
def test_an_encoder_of_frames_gives_the_same_in_two_stages_for_any_number_of_steps(name: str) -> None:
    encoder, seen = encoders()[name], drawn(specs_for(name), 2)
    if not hasattr(encoder, "frames"):
        return
    expected = encoder(seen)
    features = encoder.frames(seen)
    assert features.shape == (2, *encoder.output.of("tokens"))
    assert_close(encoder.joined(features).fields(("vector", "tokens")), expected.fields(("vector", "tokens")))
    one_by_one = [encoder.frames({key: value[:, step : step + 1] for key, value in seen.items()}) for step in (0, 1)]
    assert_close(torch.cat(one_by_one, dim=1), features, rtol=0, atol=1e-5)  # products of another size, in float32


@pytest.mark.parametrize("name", backbones())
def test_a_backbone_keeps_the_shape_and_is_the_same_at_a_fixed_condition(name: str) -> None:
    network = backbones()[name].double()
    condition = Condition(torch.randn(3, 10).double(), torch.randn(3, 4, 16).double())
    x = torch.randn(3, *SHAPE).double()
    with torch.no_grad():
        expected = network(x, torch.full((3,), 7.0), *condition.fields(network.reads))
        assert expected.shape == x.shape
        for times in ((), (99.0, 7.0)):
            assert_close(network.at_condition(condition, times, SHAPE[0])(x, 7.0), expected, rtol=0, atol=1e-8)
        for times in ((), (99.0, 7.0)):
            levels = torch.full((SHAPE[0],), 7.0)
            at = network.at_condition(condition, times, SHAPE[0])
            if name in HAS_LEVELS:
                assert_close(at(x, levels), expected, rtol=0, atol=1e-8)
            else:
                with pytest.raises(ValueError, match=r"time has shape \[3, 8\], expected \[batch\]"):
                    at(x, levels)
    grouped = [parameter for group in network.parameter_groups() for parameter in group["params"]]
    assert {id(one) for one in grouped} == {id(one) for one in network.parameters()}
    assert len(grouped) == len(list(network.parameters())), "each in one group"


@pytest.mark.parametrize("name", ["dit", "transformer"])
def test_weight_decay_spares_norms_biases_and_embeddings(name: str) -> None:
    dropping = {"name": "denoising", "condition_dropout": 0.5}
    policy = DiffusionPolicy(PolicyConfig({"goal": 2}, 2, model=name, diffusion=dropping))
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    with_decay, without = ({names[id(one)] for one in group["params"]} for group in policy.parameter_groups())
    assert policy.parameter_groups()[1]["weight_decay"] == 0.0
    assert "weight_decay" not in policy.parameter_groups()[0], "the trainer's"
    assert {one for one in names.values() if one.endswith(".bias") or "norm" in one or "positions" in one} <= without
    assert {one for one in names.values() if one.startswith("null_condition")} <= without
    assert with_decay == set(names.values()) - without
    assert all(one.endswith(".weight") for one in with_decay)


def test_every_backbone_is_in_the_tables_of_the_tests() -> None:
    """Which check that a loop can be captured, and that a replay is the loop."""
    assert set(MODELS) == set(BACKBONES)


@pytest.mark.parametrize("name", codecs())
def test_a_codec_returns_the_actions_if_it_says_so_and_knows_its_stretch(name: str) -> None:
    codec = codecs()[name]
    assert not codec.is_fitted
    data = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([10.0, 0.5]) + 3.0
    codec.fit(data)
    if hasattr(codec, "learn"):
        assert not codec.is_fitted
        codec.learn(data.unfold(0, SHAPE[0], 1).mT, torch.Generator().manual_seed(0))
    assert codec.is_fitted
    codec = codec.double()
    plan = data[: SHAPE[0]].double()
    encoded = codec.encode(plan[None])
    assert encoded.shape == (1, *codec.encoded_shape(SHAPE[0]))
    if codec.is_invertible:
        assert_close(codec.decode(encoded), plan[None], rtol=0, atol=1e-5)  # statistics and bases are float32
    else:
        assert codec.metric is None
        assert codec.log_determinant(SHAPE[0]) is None

    def flat(one: torch.Tensor) -> torch.Tensor:
        return codec.encode(one[None]).flatten()

    jacobian = torch.autograd.functional.jacobian(flat, plan).flatten(1)
    if (found := codec.log_determinant(SHAPE[0])) is not None:
        assert_close(found, torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-5)
    if codec.metric is not None:
        assert_close(codec.metric.repeat(SHAPE[0]), (jacobian.mT @ jacobian).diagonal(), rtol=1e-9, atol=0)
    if codec.limits is not None:
        low, high = codec.limits
        windows = codec.encode(data.double().unfold(0, SHAPE[0], 1).mT)
        assert float(windows.min()) >= low - 1e-5
        assert float(windows.max()) <= high + 1e-5


def npz(folder: Path) -> Path:
    """The walk's data set as a folder of episodes."""
    source = FORMATS["zarr"](str(record(folder / "walk.zarr")))
    ends = source.episode_ends
    target = folder / "npz"
    target.mkdir()
    for index, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        arrays = {key: source.rows(key, int(start), int(stop)) for key in source.keys}
        np.savez(target / f"{index:03d}.npz", **arrays)
    return target


def minari(folder: Path) -> Path:
    """The walk's data set as Minari stores one, with an observation after the last action."""
    h5py = pytest.importorskip("h5py")
    source = FORMATS["zarr"](str(record(folder / "walk.zarr")))
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for index, stop in enumerate(source.episode_ends.tolist()):
            observations = source.rows("state", stop - 20, stop)
            file[f"episode_{index}/observations"] = np.concatenate([observations, observations[-1:]])
            file[f"episode_{index}/actions"] = source.rows("action", stop - 20, stop)
    return folder


def in_format(name: str, folder: Path) -> Path:
    """The walk's data set in a format."""
    if name in ("npz", "minari"):
        return {"npz": npz, "minari": minari}[name](folder)
    recorded = record(folder / "walk.zarr")
    if name == "zarr":
        return recorded
    convert(open_recording(str(recorded), "zarr"), folder / "made", name, WriteSettings(fps=10))
    return folder / "made"


@pytest.mark.parametrize("name", [*FORMATS, "npz"])
def test_a_data_source_gives_the_same_rows_whichever_way_it_is_asked(name: str, tmp_path: Path) -> None:
    path = in_format(name, tmp_path)
    source = {**FORMATS, "npz": NpzFolder}[name](str(path))
    assert (source.n_episodes, source.n_steps) == (10, 200)
    assert source.episode_ends.tolist() == list(range(20, 201, 20))
    for key, (shape, dtype) in source.specs.items():
        whole = source[key]
        assert (whole.shape, whole.dtype) == ((200, *shape), dtype)
        np.testing.assert_array_equal(source.rows(key, 13, 57), whole[13:57])
        np.testing.assert_array_equal(source.take(key, np.array([3, 19, 20, 199])), whole[[3, 19, 20, 199]])
    source.close()
