"""What is shipped is found by its name from any working directory, after whatever lies there itself."""

from pathlib import Path

import pytest

from diffpolicy.system.shipped import CONFIGS, SHIPPED, find_checkpoint, find_shipped

CHECKPOINT = "data/checkpoints/pusht_small"
DATA_SET = "data/pusht_expert.zarr.zip"


@pytest.mark.parametrize("name", [CHECKPOINT, DATA_SET])
def test_what_is_shipped_is_found_from_elsewhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_shipped(name) == SHIPPED / name
    assert find_shipped(name).exists()
    assert (CONFIGS / "train.yaml").is_file()


def test_a_path_that_exists_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / CHECKPOINT).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_shipped(CHECKPOINT) == find_checkpoint(CHECKPOINT) == Path(CHECKPOINT)


@pytest.mark.parametrize("name", ["scripts", "diffpolicy", "data/../tests", "outputs/run/checkpoints/last"])
def test_only_data_is_shipped_under_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout the rest of the repository lies beside it."""
    monkeypatch.chdir(tmp_path)
    assert find_shipped(name) == Path(name)


def test_a_checkpoint_that_is_nowhere_names_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "data/checkpoints/none"
    with pytest.raises(FileNotFoundError) as error:
        find_checkpoint(name)
    assert f"looked at {tmp_path / name}, {SHIPPED / name}. Give the folder" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"'run/last' not found; looked at [^,]*run/last. Give the folder"):
        find_checkpoint("run/last")
