"""Converting a data set from the command line."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
from run_command import error_of, run

from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.formats import open_recording

FIXTURES = Path(__file__).parents[1] / "formats" / "fixtures"


def test_a_lerobot_folder_is_converted_and_it_is_said_what_it_is(tmp_path: Path):
    output = tmp_path / "out.zarr"
    done = run("convert_data.py", f"source={FIXTURES / 'lerobot_v3_mp4'}", f"output={output}")
    assert done.returncode == 0, done.stderr
    assert "lerobot v3.0, 2 episodes, 8 steps, 10 steps per second; arrays: action [2] float32" in done.stdout
    assert f"{output}: made, zarr, 2 episodes" in done.stdout
    source, buffer = open_recording(str(FIXTURES / "lerobot_v3_mp4"), "lerobot"), ReplayBuffer.open(output)
    for key in source.keys:
        np.testing.assert_array_equal(buffer[key], source[key])
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_what_cannot_be_converted_is_one_line(tmp_path: Path):
    fixture, output = f"source={FIXTURES / 'robomimic.hdf5'}", f"output={tmp_path / 'out'}"
    cases = {
        "output is missing": [fixture],
        "has 10 steps per second, but fps is 25": [fixture, output, "fps=25"],
        "to: 'tfds' is unknown": [fixture, output, "to=tfds"],
        "format: 'rlds' is unknown": [fixture, output, "format=rlds"],
        "workers 0 must be between 1 and": [fixture, output, "workers=0"],
        "holds no data/main_data.hdf5": [f"source={tmp_path}", output, "format=minari"],
    }
    for message, overrides in cases.items():
        assert message in error_of("convert_data", tmp_path, *overrides)
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_goes_out_with_its_rate_and_task_and_comes_back(tmp_path: Path):
    source, out, back = FIXTURES / "robomimic.hdf5", tmp_path / "out", tmp_path / "back.zarr"
    there = run(
        "convert_data.py", f"source={source}", f"output={out}", "to=lerobot", "fps=10", "task_name=push the block"
    )
    assert there.returncode == 0, there.stderr
    assert run("convert_data.py", f"source={out}", f"output={back}").returncode == 0
    first, again = open_recording(str(source), "robomimic"), ReplayBuffer.open(back)
    for key in first.keys:
        np.testing.assert_array_equal(again[key], first[key])
    tasks = pyarrow.parquet.read_table(out / "meta" / "tasks.parquet")
    assert "push the block" in str(tasks.to_pylist())
