"""Images of a data set become uint8, channels last, whether held in memory or streamed; anything else is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy.data import images
from diffpolicy.data.demonstrations import Demonstrations, load_demonstrations
from diffpolicy.data.replay_buffer import ReplayBuffer
from diffpolicy.system.pixels import PixelFormat

ENDS = (7, 12, 20)
FRAMES = np.random.default_rng(0).integers(0, 256, (20, 8, 6, 3), dtype=np.uint8)
FRAMES[:, 0, 0], FRAMES[:, 1, 1] = 0, 255


def written(folder: Path, frames: np.ndarray) -> Path:
    rows = {"action": np.zeros((len(frames), 2), np.float32), "img": frames}
    specs = {key: (value.shape[1:], value.dtype) for key, value in rows.items()}
    path = folder / f"{len(list(folder.iterdir()))}.zarr"
    buffer = ReplayBuffer.create(path, specs)
    for start, stop in zip((0, *ENDS), ENDS, strict=False):
        buffer.append_episode({key: value[start:stop] for key, value in rows.items()})
    return path


def load(path: Path, is_streamed: bool = False, episodes: int | None = None, **how: str) -> Demonstrations:
    pixels, stream = {"top": PixelFormat(**how)}, ["top"] if is_streamed else []
    return load_demonstrations(path, {"top": ["img"]}, stream=stream, images=pixels, episodes=episodes)


@over(
    "stored, how",
    [
        (FRAMES, {}),
        (FRAMES.astype(np.float32), {}),
        (FRAMES.astype(np.uint16), {}),
        (np.moveaxis(FRAMES, -1, 1), {"channels": "first"}),
        ((FRAMES / 255).astype(np.float32), {"values": "unit"}),
    ],
)
def test_images_are_bytes_with_channels_last_in_memory_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: np.ndarray, how: dict[str, str]
) -> None:
    monkeypatch.setattr(images, "BLOCK_BYTES", 3 * stored[0].nbytes)
    path = written(tmp_path, stored)
    held, left = load(path, **how).observations["top"], load(path, True, **how).observations["top"]
    assert isinstance(held, torch.Tensor)
    assert held.dtype == torch.uint8
    np.testing.assert_array_equal(held.numpy(), FRAMES)
    assert left.shape == held.shape
    assert torch.equal(left[torch.tensor([[3, 19], [0, 3]])], held[torch.tensor([[3, 19], [0, 3]])])
    assert [len(block) for block in left.split(100)] == [3, 3, 3, 3, 3, 3, 2]
    assert torch.equal(torch.cat(list(left.split(100))), held)


def with_value(value: float) -> np.ndarray:
    frames = FRAMES.astype(np.float32)
    frames[9, 4, 4, 1] = value
    return frames


@over("is_streamed", [False, True])
@over(
    "stored, how, message",
    [
        (with_value(0.5), {}, "'img' has fractions, from 0 to 255, .* in episode 1 at step 2"),
        (with_value(-1), {}, "'img' has values from -1 to 255, .* in episode 1 at step 2"),
        (with_value(300), {}, "'img' has values from 0 to 300, .* in episode 1 at step 2"),
        ((FRAMES / 255).astype("f4"), {}, "in episode 0 at step 0; if all .*'data.images={top: {values: unit}}'"),
        (FRAMES.astype("f4"), {"values": "unit"}, "'data.images={top: {values: bytes}}'"),
        (FRAMES, {"values": "unit"}, "is uint8, expected floats from 0 to 1"),
        (np.moveaxis(FRAMES, -1, 1), {}, r"rows of shape \[3, 8, 6\].*try 'data.images={top: {channels: first}}'"),
        (FRAMES, {"channels": "first"}, r"expected \[3, height, width\]; try 'data.images={top: {channels: last}}'"),
        (FRAMES[..., :1], {}, r"\[8, 6, 1\], expected \[height, width, 3\]; only RGB"),
        (FRAMES[..., 0], {}, r"'img' has rows of shape \[8, 6\].*leave top out of data.images"),
    ],
)
def test_other_images_are_refused_by_array_and_place(
    tmp_path: Path, stored: np.ndarray, how: dict[str, str], message: str, is_streamed: bool
) -> None:
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path, stored), is_streamed, **how)


def test_an_image_named_as_a_vector_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, FRAMES)
    for stream in ([], ["top"]):
        with pytest.raises(ValueError, match=r"'top': 'img': .*'data.images={top: {}}'"):
            load_demonstrations(path, {"top": ["img"]}, stream=stream)
    with pytest.raises(ValueError, match=r"images names \['wrist'\], expected some of \['top'\]"):
        load_demonstrations(path, {"top": ["img"]}, images={"wrist": PixelFormat()})
    with pytest.raises(ValueError, match="expected one array"):
        load_demonstrations(path, {"top": ["img", "img"]}, images={"top": PixelFormat()})


@over("is_streamed", [False, True])
def test_the_first_episodes_only(tmp_path: Path, is_streamed: bool) -> None:
    path = written(tmp_path, FRAMES)
    found = load(path, is_streamed, episodes=2)
    assert (found.n_episodes, found.n_steps) == (2, 12)
    assert torch.equal(torch.cat(list(found.observations["top"].split(5))), torch.from_numpy(FRAMES[:12]))
    assert load(path, is_streamed, episodes=4).n_episodes == 3


@over("is_streamed", [False, True])
def test_a_camera_that_shows_nothing_is_surveyed(tmp_path: Path, is_streamed: bool) -> None:
    frames = FRAMES.copy()
    frames[8:10] = np.random.default_rng(1).integers(0, 5, frames[8:10].shape)
    frames[11] = (200, 0, 7)
    found = load(written(tmp_path, frames), is_streamed).frames["top"]
    assert found == images.Frames(20, (8, 9), (11,), False)
