"""Renders frames of Push-T with OpenCV in the style of the published images."""

import cv2
import numpy as np

from diffpolicy_envs import pusht_world as world

WHITE = (255, 255, 255)
WALL_COLOR = (211, 211, 211)  # light gray
GOAL_COLOR = (144, 238, 144)  # light green
BLOCK_COLOR = (119, 136, 153)  # light slate gray, for the rim; the inside is 1.2 times as light
BLOCK_INSIDE_COLOR = (143, 163, 184)
AGENT_COLOR = (65, 105, 225)  # royal blue, likewise
AGENT_INSIDE_COLOR = (78, 126, 255)
ACTION_COLOR = (255, 0, 0)
RIM_PX = 2.0  # half width of the block's rim
AGENT_RIM_PX = 4.0

_SHIFT = 4  # OpenCV takes fixed-point coordinates: 1/16 px
_FIXED_POINT = 1 << _SHIFT


class PushTRenderer:
    """Draws square frames of one size.

    Frames below 512 px are drawn at 512 px in whole pixels and shrunk by bilinear sampling, as the published images
    were, so that an image policy sees the same kind of picture in the data and in the env. Larger frames are smooth.
    """

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self._canvas_px = max(size_px, int(world.WORLD_SIZE_PX))
        self._scale = self._canvas_px / world.WORLD_SIZE_PX
        self._is_shrunk = size_px < self._canvas_px
        self._line = cv2.LINE_8 if self._is_shrunk else cv2.LINE_AA
        self._background = self._draw_background()

    def draw(self, state, action: tuple[float, float] | None = None) -> np.ndarray:
        """A frame [size, size, 3] uint8 RGB of `state` [5] (px, px, px, px, rad). A cross marks the action (px)."""
        agent_x, agent_y, block_x, block_y, angle = state
        canvas = self._background.copy()
        for vertices in (world.BAR_VERTICES, world.STEM_VERTICES):
            corners = self._fixed(world.to_world(np.array(vertices), block_x, block_y, angle))
            cv2.fillConvexPoly(canvas, corners, BLOCK_INSIDE_COLOR, self._line, _SHIFT)
            rim_px = round(2 * RIM_PX * self._scale)
            cv2.polylines(canvas, [corners], True, BLOCK_COLOR, rim_px, self._line, _SHIFT)
        self._draw_disc(canvas, agent_x, agent_y, world.AGENT_RADIUS_PX, AGENT_COLOR)
        self._draw_disc(canvas, agent_x, agent_y, world.AGENT_RADIUS_PX - AGENT_RIM_PX, AGENT_INSIDE_COLOR)
        frame = self._shrink(canvas)
        if action is not None:
            self._mark(frame, action)
        return frame

    def _draw_background(self) -> np.ndarray:
        canvas = np.full((self._canvas_px, self._canvas_px, 3), WHITE, dtype=np.uint8)
        self._draw_walls(canvas)
        for vertices in (world.BAR_VERTICES, world.STEM_VERTICES):
            corners = self._fixed(world.to_world(np.array(vertices), *world.GOAL_POSE))
            cv2.fillConvexPoly(canvas, corners, GOAL_COLOR, self._line, _SHIFT)
        return canvas

    def _draw_walls(self, canvas: np.ndarray) -> None:
        half = world.WALL_RADIUS_PX
        low, high = world.WALL_LOW_PX, world.WALL_HIGH_PX
        outer, inner = (low - half, high + half + 1), (low + half + 1, high - half)
        for (start, stop), color in ((outer, WALL_COLOR), (inner, WHITE)):
            area = slice(round(start * self._scale), round(stop * self._scale))
            canvas[area, area] = color

    def _draw_disc(self, canvas: np.ndarray, x: float, y: float, radius_px: float, color) -> None:
        (center,) = self._fixed(np.array([(x, y)]))
        radius = round(radius_px * self._scale * _FIXED_POINT)
        cv2.circle(canvas, center.tolist(), radius, color, cv2.FILLED, self._line, _SHIFT)

    def _mark(self, frame: np.ndarray, action: tuple[float, float]) -> None:
        scale = self.size_px / world.WORLD_SIZE_PX
        center = int(action[0] * scale), int(action[1] * scale)
        marker_px, thickness_px = max(self.size_px // 12, 1), max(self.size_px // 96, 1)
        cv2.drawMarker(frame, center, ACTION_COLOR, cv2.MARKER_CROSS, marker_px, thickness_px)

    def _shrink(self, canvas: np.ndarray) -> np.ndarray:
        if not self._is_shrunk:
            return canvas
        return cv2.resize(canvas, (self.size_px, self.size_px), interpolation=cv2.INTER_LINEAR)

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        """World points [n, 2] (px) -> fixed-point canvas coordinates [n, 2] int32."""
        if self._is_shrunk:
            return (np.rint(points) * _FIXED_POINT).astype(np.int32)
        return np.rint(points * (self._scale * _FIXED_POINT)).astype(np.int32)
