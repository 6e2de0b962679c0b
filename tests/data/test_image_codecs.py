"""Images stored as JPEG, JPEG 2000 and JPEG XL are read, and sized before they are decoded."""

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from numcodecs import registry
from one_case import over

from diffpolicy.data.demonstrations import load_demonstrations
from diffpolicy.data.image_codecs import decoded_bytes
from diffpolicy.system.pixels import PixelFormat

codecs = pytest.importorskip("imagecodecs.numcodecs")
codecs.register_codecs(verbose=False)
LINES = np.linspace(0, 255, 40).astype(np.uint8)
FRAMES = np.stack([np.broadcast_to(np.roll(LINES, i)[:, None, None], (40, 24, 3)) for i in range(6)])
CODECS = {
    "imagecodecs_jpeg": {"level": 95},
    "imagecodecs_jpeg2k": {"level": 60, "codecformat": "j2k"},
    "imagecodecs_jpegxl": {"level": 95},
}
OF_BOXES = [("imagecodecs_jpeg2k", {"codecformat": "jp2"}), ("imagecodecs_jpegxl", {"usecontainer": True})]


def stored(folder: Path, name: str) -> Path:
    """Six frames as the published data sets hold them: zarr format 2, one frame a chunk."""
    path = folder / f"{name}.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.create_array("data/action", data=np.zeros((6, 2), np.float32))
    root.create_array("meta/episode_ends", data=np.array([4, 6]))
    compressor = registry.get_codec({"id": name, **CODECS[name]})
    array = root.create_array(
        "data/img", shape=FRAMES.shape, chunks=(1, *FRAMES.shape[1:]), dtype="u1", compressors=compressor
    )
    array[:] = FRAMES
    return path


@over("name", list(CODECS))
def test_they_are_read_in_memory_and_streamed(tmp_path: Path, name: str) -> None:
    path, how = stored(tmp_path, name), {"img": PixelFormat()}
    for codec in CODECS:
        registry.codec_registry.pop(codec)
    held = load_demonstrations(path, {"img": ["img"]}, images=how).observations["img"]
    assert isinstance(held, torch.Tensor)
    assert np.abs(held.numpy().astype(int) - FRAMES).mean() < 3.0  # all three lose some
    left = load_demonstrations(path, {"img": ["img"]}, stream=["img"], images=how).observations["img"]
    again = copy.deepcopy(left)  # as a worker process gets it
    assert torch.equal(again[torch.tensor([5, 0])], held[[5, 0]])


@over("name, more", [*((name, {}) for name in CODECS), *OF_BOXES])
@over("shape", [(40, 24, 3), (32, 64, 3), (96, 96, 3), (480, 640, 3), (37, 301, 3)])
def test_the_header_tells_the_size(name: str, more: dict, shape: tuple[int, ...]) -> None:
    frame = np.zeros(shape, np.uint8)
    data = registry.get_codec({"id": name, **CODECS[name], **more}).encode(frame)
    assert decoded_bytes(name, bytes(data)) == frame.nbytes
    for length in range(4):
        with pytest.raises(ValueError, match="no "):
            decoded_bytes(name, bytes(data)[:length])


@over("name", list(CODECS))
def test_a_chunk_larger_than_its_shape_is_refused_before_it_is_decoded(tmp_path: Path, name: str) -> None:
    path = stored(tmp_path, name)
    large = registry.get_codec({"id": name, **CODECS[name]}).encode(np.zeros((400, 400, 3), np.uint8))
    (path / "data" / "img" / "2.0.0.0").write_bytes(bytes(large))
    with pytest.raises(ValueError, match=r"decodes to more than the \d+ bytes that its shape needs"):
        load_demonstrations(path, {"img": ["img"]}, images={"img": PixelFormat()})


@over("name", list(CODECS))
def test_without_the_package_file_array_codec_and_cure_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = stored(tmp_path, name)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)  # type: ignore[arg-type]
    for codec in CODECS:
        registry.codec_registry.pop(codec, None)
    with pytest.raises(ValueError, match=rf"{path}: array data/img: .*{name}.*pip install 'diffpolicy\[images\]'"):
        load_demonstrations(path, {"img": ["img"]}, images={"img": PixelFormat()})
    monkeypatch.undo()
    codecs.register_codecs(verbose=False)
