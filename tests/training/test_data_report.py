"""Before training, odd columns are reported by name; ordinary data are not reported at all."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from diffpolicy.codecs.normalizer import NormalizerConfig
from diffpolicy.data.demonstrations import load_demonstrations
from diffpolicy.data.images import Frames
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.policy.build import resolved
from diffpolicy.policy.settings import PolicyConfig, WindowConfig
from diffpolicy.system.pixels import PixelFormat
from diffpolicy.training.data_formats import load_data
from diffpolicy.training.data_report import log_report, report
from diffpolicy.training.settings import DataConfig

ROWS = 300
random = np.random.default_rng(0)
ORDINARY = random.normal(size=ROWS)
GRIPPER = np.where(np.arange(ROWS) > 270, 0.04, 0.0)  # rarely open, not an outlier


def lines_of(folder: Path, columns: dict[str, np.ndarray], stream: bool = False, **settings) -> list[str]:
    """The report on a data set with these columns as the array `state`, beside ordinary actions."""
    location = folder / "data.zarr"
    state = np.stack(list(columns.values()), axis=1)
    buffer = ReplayBuffer.create(location, {"action": ((1,), "f4"), "state": (state.shape[1:], "f8")})
    for rows in (slice(0, 100), slice(100, None)):
        buffer.append_episode({"action": ORDINARY[rows, None], "state": state[rows]})
    data = load_demonstrations(location, {"seen": ["state"]}, stream=["seen"] if stream else [])
    return report(data, resolved(PolicyConfig({"seen": state.shape[1]}, 1, **settings)))


def test_ordinary_data_have_no_report(tmp_path: Path) -> None:
    assert lines_of(tmp_path, {"normal": ORDINARY, "gripper": GRIPPER, "step": np.arange(ROWS)}) == []


@pytest.mark.parametrize("stream", [False, True])
def test_odd_columns_are_named_in_one_line_of_each_kind(tmp_path: Path, stream: bool) -> None:
    outlier = random.uniform(size=ROWS)
    outlier[107] = -1e4
    stamp = 1.7e9 + np.linspace(0.0, 60.0, ROWS)
    columns = {
        "constant": np.full(ROWS, 0.04),
        "ordinary": ORDINARY,
        "noise": 0.5 + 1e-5 * random.uniform(size=ROWS),
        "outlier": outlier,
        "spike": np.where(np.arange(ROWS) == 99, 5.0, 0.0),
        "stamp": stamp,
    }
    constant, far, coarse = lines_of(tmp_path, columns, stream)
    assert constant.startswith("data: seen: constant: state[0] at 0.04, state[2] at 0.500005 (range 1e-05); ")
    assert "outliers: state[3] reaches -10000 in episode 1 at step 7 (98 % lie in 0.0" in far
    assert "state[4] reaches 5 in episode 0 at step 99" in far
    assert coarse.startswith("data: seen: rounded by float32: state[5] by up to 6")
    assert coarse.endswith("(range 60); subtract a constant before recording")
    (override,) = [word for word in shlex.split(far) if word.startswith("data.")]
    parsed = OverridesParser.create().parse_override(override)
    assert (parsed.key_or_group, parsed.value()) == ("data.normalizer", {"seen": "quantiles"})


def test_settings_of_the_key_decide(tmp_path: Path) -> None:
    outlier = np.where(np.arange(ROWS) == 9, 1e4, ORDINARY)
    columns = {"outlier": outlier, "small": 1e-5 * ORDINARY}
    normalizer = {"seen": {"name": "quantiles", "range_eps": 1e-7}}
    (line,) = lines_of(tmp_path, columns, normalizer=normalizer)
    assert "outliers: state[0]" in line
    assert "data.normalizer" not in line


def test_several_data_sets_are_reported_as_one(tmp_path: Path) -> None:
    paths, spike = [], np.where(np.arange(ROWS) == 9, 1e4, ORDINARY)
    for number, second in enumerate([ORDINARY, spike]):
        paths.append(str(tmp_path / f"{number}.zarr"))
        buffer = ReplayBuffer.create(paths[-1], {"action": ((1,), "f4"), "state": ((3,), "f4")})
        state = np.stack([np.full(ROWS, 0.5), second, np.full(ROWS, float(number))], axis=1)
        buffer.append_episode({"action": ORDINARY[:, None], "state": state})
    data = load_data(DataConfig(paths, observations={"seen": ["state"]}))
    constant, far = report(data, resolved(PolicyConfig({"seen": 3}, 1)))
    assert "state[0] at 0.5" in constant
    assert "state[2]" not in constant, "it is constant in each of them, at another value"
    assert "state[1] reaches 10000 in episode 1 at step 9 " in far


def test_many_columns_are_counted_and_short_episodes_too(tmp_path: Path) -> None:
    columns = {str(i): np.zeros(ROWS) for i in range(9)}
    constant, short = lines_of(tmp_path, columns, window=WindowConfig(horizon=128, n_action_steps=8))
    assert "state[4] at 0, and 4 more; " in constant
    assert short == "data: 1 of 2 episodes are too short for a window and are not used"


def test_constant_actions_are_logged_as_what_is_always_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    buffer = ReplayBuffer.create(tmp_path / "data.zarr", {"action": ((2,), "f4"), "state": ((1,), "f4")})
    buffer.append_episode({"action": np.stack([ORDINARY, np.full(ROWS, 0.5)], axis=1), "state": ORDINARY[:, None]})
    data = load_demonstrations(tmp_path / "data.zarr", {"state": ["state"]})
    with caplog.at_level(logging.WARNING):
        log_report(data, resolved(PolicyConfig({"state": 1}, 2)))
    assert [record.getMessage() for record in caplog.records] == [
        "data: action: constant: action[1] at 0.5; policies always send this value"
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_camera_that_shows_nothing_is_named(tmp_path: Path, stream: bool) -> None:
    frames = random.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    cameras = {"good": frames.copy(), "covered": frames.copy(), "stuck": frames.copy()}
    cameras["covered"][13:16], cameras["covered"][5] = 3, 77
    cameras["stuck"][:] = frames[0]
    specs = {"action": ((1,), "f4")} | dict.fromkeys(cameras, ((4, 4, 3), "u1"))
    buffer = ReplayBuffer.create(tmp_path / "data.zarr", specs)
    for rows in (slice(0, 12), slice(12, 30)):
        episode = {name: shown[rows] for name, shown in cameras.items()}
        buffer.append_episode({"action": ORDINARY[rows, None], **episode})
    observations = {name: [name] for name in cameras}
    formats = dict.fromkeys(cameras, PixelFormat())
    data = load_demonstrations(
        tmp_path / "data.zarr", observations, stream=list(cameras) if stream else [], images=formats
    )
    config = PolicyConfig(dict.fromkeys(cameras, ObservationSpec("image", (4, 4, 3))), 1)
    assert report(data, replace(config, normalizer={"action": NormalizerConfig()})) == [
        "data: covered: 3 of 30 frames are black, the first in episode 1 at step 1",
        "data: covered: 1 of 30 frames are of a single colour, the first in episode 0 at step 5",
        "data: stuck: all 30 frames are the same picture; they tell a policy nothing",
    ]


def test_frames_of_several_data_sets_are_reported_by_their_rows_in_all_of_them() -> None:
    first, second = Frames(10, (2,), (), False), Frames(5, (), (1, 4), True)
    assert Frames.chained([first, second]) == Frames(15, (2,), (11, 14), False)
