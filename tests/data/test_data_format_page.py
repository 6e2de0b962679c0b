"""What docs/data_format.md says is true: its program runs, its windows are the ones the library makes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from diffpolicy.data.demonstrations import load_demonstrations
from diffpolicy.data.windows import window_indices

PAGE = (Path(__file__).parents[2] / "docs" / "data_format.md").read_text(encoding="utf-8")


def test_the_recording_program_runs_and_its_result_can_be_trained_on(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 102 (102, 2) (50, 4)", "[{'seed': 0}, {'seed': 2}]"]
    for name in ("my_task.zarr", "my_task.zarr.zip"):
        data = load_demonstrations(tmp_path / name, {"state": ["state"]})
        assert (data.n_episodes, tuple(data.observations["state"].shape)) == (2, (102, 4))


def test_the_drawn_windows_are_the_first_and_the_last():
    drawn = {
        name: [
            int(digit) for digit in re.search(rf"^{name} window +((?:\d ){{8}})", PAGE, flags=re.MULTILINE)[1].split()
        ]
        for name in ("first", "last")
    }
    windows = window_indices(np.array([10]), horizon=8, pad_before=1, pad_after=3)
    assert windows[0].tolist() == drawn["first"]
    assert windows[-1].tolist() == drawn["last"]
    assert len(windows) == 10 - 8 + 2 + 4 - 1
