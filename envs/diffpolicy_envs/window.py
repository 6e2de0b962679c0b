"""A window for people to watch an env in; the only place that imports pygame."""

from typing import Any

import numpy as np


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
        """Draw the frame [size, size, 3] uint8 RGB and wait until its time is up."""
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
