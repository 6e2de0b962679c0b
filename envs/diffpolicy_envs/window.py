"""A window to watch an env in. This is the only module that imports pygame."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np


class Viewer:
    """Passes an env's frames on: to the caller (rgb_array), or to a window that opens with the first frame (human)."""

    def __init__(self, render_mode: str | None, title: str, size_px: int, rate_hz: int) -> None:
        self._render_mode = render_mode
        self._window_settings = title, size_px, rate_hz
        self._window: Window | None = None

    def show(self, draw: Callable[[], np.ndarray]) -> np.ndarray | None:
        """rgb_array: the frame [size, size, 3] uint8. human: draw to the window. None without a render mode."""
        if self._render_mode is None:
            gymnasium.logger.warn("render() without a render_mode; make the env with render_mode='rgb_array'")
            return None
        frame = draw()
        if self._render_mode == "rgb_array":
            return frame
        if self._window is None:
            self._window = Window(*self._window_settings)
        self._window.show(frame)
        return None

    def close(self) -> None:
        """Close the window if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None


class Window:
    """Shows RGB frames at a steady rate.

    Raises:
        ImportError: pygame is not installed.
    """

    def __init__(self, title: str, size_px: int, rate_hz: int) -> None:
        self._pygame = _import_pygame()
        self._pygame.display.init()
        self._pygame.display.set_caption(title)
        self._screen = self._pygame.display.set_mode((size_px, size_px))
        self._clock = self._pygame.time.Clock()
        self._rate_hz = rate_hz

    def show(self, frame: np.ndarray) -> None:
        """Show the frame [size, size, 3] uint8 RGB and wait until the next one is due."""
        self._pygame.surfarray.blit_array(self._screen, frame.swapaxes(0, 1))
        self._pygame.event.pump()
        self._pygame.display.flip()
        self._clock.tick(self._rate_hz)

    def close(self) -> None:
        self._pygame.display.quit()


def _import_pygame() -> Any:
    try:
        import pygame  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "render_mode 'human' needs pygame, which is not installed; run: pip install pygame"
        ) from error
    return pygame
