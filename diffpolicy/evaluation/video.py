"""Records episodes as mp4 files, with the score and the keep-out zones drawn in."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv

from diffpolicy.evaluation.encoder import VideoFile
from diffpolicy.evaluation.views import beside, views
from diffpolicy.policy.protocol import Policy

WORLD_SIZE = 512  # side of the square that a frame shows, in the envs' units
ZONE_COLOR = np.array([220, 30, 30], dtype=np.float32)
ZONE_SHARES = 0.2, 0.9  # opacity of the colour inside and on the outline

Zone = tuple[npt.NDArray[np.float64], float]
"""Corners [V, 2] of a convex polygon in order and the radius by which it is grown, world units. A disc is one point."""


class VideoRecorder:
    """An `OnStep` for `rollout` that writes one mp4 (H.264) per episode, such as `episode_000_seed_100000.mp4`.

    Args:
        folder: the output folder; created if it does not exist.
        seeds: the seeds of the episodes, used in the file names.
        fps: frames per second; at the control rate, the video plays in real time.
        zones: zones to draw into every frame. The frame must show the square from 0 to WORLD_SIZE.
        policy: if it has cameras, what they show stands beside the scene.
    """

    def __init__(
        self,
        folder: Path,
        seeds: list[int],
        fps: float = 10,
        zones: Sequence[Zone] = (),
        policy: Policy | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"episode_{i:03d}_seed_{seed}.mp4" for i, seed in enumerate(seeds)]
        self._fps = fps
        self._zones = zones
        self._policy = policy
        self._files: dict[int, VideoFile] = {}

    def __call__(
        self, env: VectorEnv, episode: npt.NDArray[np.intp], score: npt.NDArray[np.float64], observation: Any
    ) -> None:
        try:
            frames = env.render()
        except gymnasium.error.Error as error:  # such as a missing drawing package
            raise ValueError(f"videos: the env cannot be drawn: {error}; set videos=0 to skip them") from error
        if frames is None or any(frame is None for frame in frames):
            raise ValueError("videos: the env has no render_mode 'rgb_array'; set videos=0 to skip them")
        seen = views(self._policy, observation) if self._policy is not None else []
        for slot in np.flatnonzero(episode >= 0):
            index = int(episode[slot])
            if index not in self._files:
                self._files[index] = VideoFile(self.paths[index], self._fps)
            scene = draw_score(draw_zones(np.asarray(frames[slot]), self._zones), float(score[slot]))
            self._files[index].append(beside(scene, [view[slot] for view in seen]))

    def close(self) -> None:
        """Finish the files.

        Raises:
            OSError: a file is not complete.
        """
        with contextlib.ExitStack() as files:
            for file in self._files.values():
                files.callback(file.close)


def draw_score(frame: npt.NDArray[np.uint8], score: float) -> npt.NDArray[np.uint8]:
    """A copy of the frame [height, width, 3] with the best score so far (0 before the first) in its upper left."""
    picture = np.ascontiguousarray(frame).copy()
    scale = picture.shape[0] / WORLD_SIZE
    origin = (round(16 * scale), round(34 * scale))
    cv2.putText(
        picture,
        f"score {score if np.isfinite(score) else 0.0:.2f}",
        origin,
        cv2.FONT_HERSHEY_SIMPLEX,
        0.9 * scale,
        (40, 40, 40),
        max(1, round(2 * scale)),
        cv2.LINE_AA,
    )
    return picture


def draw_zones(frame: npt.NDArray[np.uint8], zones: Sequence[Zone]) -> npt.NDArray[np.uint8]:
    """The frame [height, width, 3] with the zones outlined and lightly filled in red."""
    if not zones:
        return frame
    scale, shift = frame.shape[0] / WORLD_SIZE, 4  # OpenCV takes fixed-point coordinates: 1/16 px
    inside = np.zeros(frame.shape[:2], dtype=np.uint8)
    for corners, radius in zones:
        points = np.rint(corners * scale * 2**shift).astype(np.int32)
        cv2.fillConvexPoly(inside, points, 1, cv2.LINE_8, shift)
        cv2.polylines(inside, [points], True, 1, max(1, round(2 * radius * scale)), cv2.LINE_8, shift)
    core = cv2.erode(inside, np.ones((3, 3), dtype=np.uint8), iterations=max(1, round(2 * scale)))
    zone, picture = inside > 0, frame.copy()
    share = np.where(core[zone] > 0, *ZONE_SHARES)[:, None]
    picture[zone] = np.rint(frame[zone] + share * (ZONE_COLOR - frame[zone]))
    return picture
