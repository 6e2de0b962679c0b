"""Episodes as mp4 files, with the score drawn in."""

from pathlib import Path
from typing import Any

import cv2
import imageio.v2 as imageio
import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv


class VideoRecorder:
    """An `OnStep` for `rollout`: one mp4 (H.264) per episode, `episode_000_seed_100000.mp4`.

    Args:
        folder: made if absent.
        seeds: of the episodes, to name the files.
        fps: of the video; at the control rate it plays in real time.
    """

    def __init__(self, folder: Path, seeds: list[int], fps: int = 10) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"episode_{i:03d}_seed_{seed}.mp4" for i, seed in enumerate(seeds)]
        self._fps = fps
        self._writers: dict[int, Any] = {}

    def __call__(self, env: VectorEnv, episode: npt.NDArray[np.intp], score: npt.NDArray[np.float64]) -> None:
        frames = env.render()
        assert frames is not None, "the env was made without render_mode='rgb_array'"
        for slot in np.flatnonzero(episode >= 0):
            index = int(episode[slot])
            if index not in self._writers:
                self._writers[index] = imageio.get_writer(self.paths[index], fps=self._fps, codec="libx264")
            self._writers[index].append_data(draw_score(np.asarray(frames[slot]), max(0.0, float(score[slot]))))

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()


def draw_score(frame: npt.NDArray[np.uint8], score: float) -> npt.NDArray[np.uint8]:
    """A copy of the frame [height, width, 3] with the best score so far in its upper left corner."""
    picture = np.ascontiguousarray(frame).copy()
    scale = picture.shape[0] / 512
    origin = (round(16 * scale), round(34 * scale))
    cv2.putText(
        picture,
        f"score {score:.2f}",
        origin,
        cv2.FONT_HERSHEY_SIMPLEX,
        0.9 * scale,
        (40, 40, 40),
        max(1, round(2 * scale)),
        cv2.LINE_AA,
    )
    return picture
