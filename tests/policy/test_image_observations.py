"""Images at the policy's boundary: uint8, channels last, or refused with the reason and a mend."""

import numpy as np
import pytest
import torch
from one_case import over

from diffpolicy.networks.observation import ObservationSpec
from diffpolicy.policy.observations import checked_observation, told_apart
from diffpolicy.policy.settings import PolicyConfig

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
FRAMES[:, 0, 0], FRAMES[:, 1, 1] = 0, 255  # so that messages tell these limits
FIRST = np.moveaxis(FRAMES, -1, 1)
UNIT = (FRAMES / 255.0).astype(np.float32)


def spec(**how: str) -> ObservationSpec:
    return ObservationSpec("image", (8, 6, 3), **how)


def checked(value: object, **how: str) -> torch.Tensor:
    return checked_observation({"top": value}, {"top": spec(**how)}, (2,))["top"]  # type: ignore[dict-item]


@over(
    "value, how",
    [
        (FRAMES, {}),
        (torch.from_numpy(FRAMES), {}),
        (FRAMES.tolist(), {}),
        (FRAMES.astype(np.float32), {}),
        (FRAMES.astype(np.float64), {}),
        (FRAMES.astype(np.int64), {}),
        (FRAMES.astype(np.uint16), {}),
        (FRAMES[:, ::-1].copy()[:, ::-1], {}),  # a flipped view, which torch does not take
        (FIRST, {"channels": "first"}),
        (FIRST.astype(np.float32), {"channels": "first"}),
        (FRAMES, {"channels": "first"}),  # as policies hold it
        (UNIT, {"values": "unit"}),
        (UNIT.astype(np.float64), {"values": "unit"}),
        (np.moveaxis(UNIT, -1, 1), {"values": "unit", "channels": "first"}),
        (FRAMES, {"values": "unit"}),  # as policies hold it
    ],
)
def test_what_the_spec_says_is_converted_exactly(value: object, how: dict[str, str]) -> None:
    found = checked(value, **how)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), FRAMES)


def changed(frames: np.ndarray, value: float) -> np.ndarray:
    frames = frames.astype(np.float64)
    frames[1, 2, 3, 1] = value
    return frames


@over(
    "value, how, message",
    [
        (FIRST, {}, r"has shape \[2, 3, 8, 6\], expected \[2, 8, 6, 3\] .*data.images={top: {channels: first}}"),
        (UNIT.swapaxes(1, 2), {"channels": "first"}, r"expected \[2, 3, 8, 6\] \(batch, channels, height, width\)"),
        (FRAMES.astype(float), {"channels": "first"}, "data.images={top: {channels: last}}"),
        (FRAMES[..., :1], {}, r"shape \[2, 8, 6, 1\]"),
        (FRAMES[:, :4], {}, r"shape \[2, 4, 6, 3\]"),
        (UNIT, {}, r"floats from 0 to 1 .*; multiply by 255 and round, or .*'data.images={top: {values: unit}}'"),
        (FRAMES > 128, {}, "is bool, expected numbers"),
        (changed(FRAMES, 0.5), {}, "fractions, from 0 to 255, expected whole numbers from 0 to 255"),
        (changed(FRAMES, -1), {}, "values from -1 to 255"),
        (changed(FRAMES, 256), {}, "values from 0 to 256"),
        (changed(FRAMES, np.nan), {}, "NaN"),
        (changed(FRAMES, np.inf), {}, "NaN or infinite"),
        (changed(UNIT, np.nan), {"values": "unit"}, "NaN"),
        (changed(UNIT, -0.1), {"values": "unit"}, "values from -0.1 to 1, expected floats from 0 to 1"),
        (FRAMES.astype(np.float32), {"values": "unit"}, "divide by 255, or .*'data.images={top: {values: bytes}}'"),
        (FRAMES.astype(np.int32), {"values": "unit"}, "is int32, expected floats from 0 to 1"),
        (np.full((2, 8, 6, 3), "red"), {}, "expected an image: numbers"),
    ],
)
def test_everything_else_is_refused_with_the_reason(value: np.ndarray, how: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"observation: top .*{message}"):
        checked(value, **how)


def test_a_black_frame_is_black_whatever_its_type() -> None:
    assert not checked(np.zeros((2, 8, 6, 3))).any()
    assert not checked(np.zeros((2, 8, 6, 3)), values="unit").any()


def test_only_the_robot_whose_camera_fails_is_told_apart() -> None:
    frames = np.concatenate([FRAMES, FRAMES])
    bad = frames.astype(np.float32)
    bad[2, 0, 0, 0] = np.nan
    seen, unseen = told_apart({"top": bad}, {"top": spec()}, 4)
    assert set(unseen) == {2}
    assert "top has NaN" in unseen[2]
    np.testing.assert_array_equal(seen["top"].numpy()[[0, 1, 3]], frames[[0, 1, 3]])


@over("how, frame", [({}, FRAMES[0]), ({"channels": "first"}, FIRST[0]), ({"values": "unit"}, UNIT[0])])
def test_a_robot_without_an_image_is_told_apart(how: dict[str, str], frame: np.ndarray) -> None:
    seen, unseen = told_apart({"top": [frame, None]}, {"top": spec(**how)}, 2)
    assert unseen == {1: "observation: top is None, expected an image"}
    np.testing.assert_array_equal(seen["top"][0].numpy(), FRAMES[0])
    assert not seen["top"][1].any()
    assert set(told_apart({"top": [None, None]}, {"top": spec(**how)}, 2)[1]) == {0, 1}
    with pytest.raises(ValueError, match="observation: top is None, expected an image"):
        checked([frame, None], **how)
    with pytest.raises(ValueError, match=r"top has shape \[3, .*expected \[2, "):
        checked([frame, frame, None], **how)


def test_a_missing_camera_is_named() -> None:
    specs = {"top": spec(), "wrist": spec()}
    with pytest.raises(ValueError, match=r"keys are \['top'\], expected \['top', 'wrist'\]"):
        checked_observation({"top": FRAMES}, specs, (2,))


@over(
    "shape, message",
    [
        ((96, 96, 1), "image of 1 channels.*repeat a grey image"),
        ((96, 96, 4), "image of 4 channels.*drop depth or alpha"),
        ((3, 96, 96), "channels: first delivers"),
        ((3, 3, 3), "at least 4 x 4"),
        ((96, 96), r"expected \[height, width, channels\]"),
    ],
)
def test_an_image_has_three_channels(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObservationSpec("image", shape)


def test_a_vector_has_no_channels() -> None:
    with pytest.raises(ValueError, match="a vector has no channels"):
        PolicyConfig({"state": {"kind": "vector", "shape": [2], "channels": "first"}}, 2)
