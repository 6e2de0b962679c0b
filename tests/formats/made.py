"""The small demonstrations in fixtures/, as formulas: every number tells its episode, step and column."""

import numpy as np

LENGTHS = [5, 3]
TASKS = ["push the block", "pull the block"]  # one per episode
FPS = 10


def vector(episode: int, length: int, columns: int, shift: float = 0.0) -> np.ndarray:
    """float32 [length, columns]"""
    return (100 * episode + np.arange(length)[:, None] + np.arange(columns) / 8 + shift).astype(np.float32)


def image(episode: int, length: int, size: int) -> np.ndarray:
    """uint8 [length, size, size, 3]: a gradient, and a bright square that moves one eighth of the image per step."""
    ramp = np.linspace(0, 120, size).astype(np.uint8)
    frames = np.zeros((length, size, size, 3), np.uint8)
    frames[..., 0], frames[..., 1], frames[..., 2] = ramp, ramp[:, None], 60 * episode
    eighth = size // 8
    for step in range(length):
        frames[step, eighth : 3 * eighth, step * eighth : (step + 1) * eighth] = 230
    return frames


def episode(index: int, size: int = 16) -> dict[str, np.ndarray]:
    """All arrays of an episode by their names in LeRobot."""
    length = LENGTHS[index]
    return {
        "action": vector(index, length, 2),
        "observation.state": vector(index, length, 3, shift=0.5),
        "observation.grid": vector(index, length, 4, shift=0.25).reshape(length, 2, 2),
        "next.reward": vector(index, length, 1, shift=0.75),
        "next.done": (np.arange(length) == length - 1)[:, None],
        "observation.images.top": image(index, length, size),
    }
