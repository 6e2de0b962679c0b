"""Renders frames of ObstacleReach with OpenCV in Push-T's colours."""

import cv2
import numpy as np

from diffpolicy_envs import reach_world as world

BACKGROUND_COLOR = (255, 255, 255)
GOAL_COLOR = (144, 238, 144)  # light green
OBSTACLE_COLOR = (119, 136, 153)  # light slate gray
AGENT_COLOR = (65, 105, 225)  # royal blue
CONTACT_COLOR = (220, 60, 40)  # the agent while it touches an obstacle
ACTION_COLOR = (255, 0, 0)

_SHIFT = 4  # OpenCV takes fixed-point coordinates: 1/16 px
_FIXED_POINT = 1 << _SHIFT


class ReachRenderer:
    """Draws square frames of one size."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self._scale = size_px / world.WORLD_SIZE_PX

    def draw(
        self,
        agent: np.ndarray,
        goal: np.ndarray,
        vertices: np.ndarray,
        radius: np.ndarray,
        is_contact: bool = False,
        action: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """A frame [size, size, 3] uint8 RGB; agent [2], goal [2], vertices [n, 4, 2], radius [n] in px."""
        frame = np.full((self.size_px, self.size_px, 3), BACKGROUND_COLOR, dtype=np.uint8)
        self._disc(frame, goal, world.GOAL_RADIUS_PX, GOAL_COLOR)
        for corners, inflation in zip(vertices, radius, strict=True):
            self._obstacle(frame, corners, float(inflation))
        self._disc(frame, agent, world.AGENT_RADIUS_PX, CONTACT_COLOR if is_contact else AGENT_COLOR)
        if action is not None:
            center = int(action[0] * self._scale), int(action[1] * self._scale)
            marker_px, thickness_px = max(self.size_px // 24, 1), max(self.size_px // 256, 1)
            cv2.drawMarker(frame, center, ACTION_COLOR, cv2.MARKER_CROSS, marker_px, thickness_px)
        return frame

    def _obstacle(self, frame: np.ndarray, corners: np.ndarray, inflation: float) -> None:
        """Draw the hull, and along each edge a band with round ends."""
        cv2.fillConvexPoly(frame, self._fixed(corners), OBSTACLE_COLOR, cv2.LINE_AA, _SHIFT)
        if inflation == 0.0:
            return
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            self._disc(frame, start, inflation, OBSTACLE_COLOR)
            along = end - start
            if (length := float(np.hypot(*along))) > 0.0:
                across = inflation / length * np.array([-along[1], along[0]])
                band = np.array([start + across, end + across, end - across, start - across])
                cv2.fillConvexPoly(frame, self._fixed(band), OBSTACLE_COLOR, cv2.LINE_AA, _SHIFT)

    def _disc(self, frame: np.ndarray, center: np.ndarray, radius_px: float, color: tuple[int, int, int]) -> None:
        (place,) = self._fixed(center[None])
        cv2.circle(
            frame, place.tolist(), round(radius_px * self._scale * _FIXED_POINT), color, cv2.FILLED, cv2.LINE_AA, _SHIFT
        )

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        """World points [n, 2] (px) -> fixed-point frame coordinates [n, 2] int32."""
        return np.rint(points * (self._scale * _FIXED_POINT)).astype(np.int32)
