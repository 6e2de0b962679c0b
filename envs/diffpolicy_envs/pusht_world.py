"""Push-T's world: every number of the published task, and the geometry that follows from them.

The task is that of Florence et al. 2021 (Implicit Behavioral Cloning) as published by Diffusion Policy (Chi et al.
2023). A pose is (x, y, angle): the block's origin in pixels, and radians. Lengths are in pixels (px). y points down in
pictures.
"""

import math

import numpy as np

WORLD_SIZE_PX = 512.0
WALL_LOW_PX = 5.0
WALL_HIGH_PX = 506.0
WALL_RADIUS_PX = 2.0

AGENT_RADIUS_PX = 15.0
POSITION_GAIN = 100.0  # 1/s^2: acceleration per px of distance to the target
VELOCITY_GAIN = 20.0  # 1/s: deceleration per px/s

SUBSTEP_S = 0.01
SUBSTEPS_PER_ACTION = 10
CONTROL_RATE_HZ = 10
MAX_EPISODE_STEPS = 300

# The block is a bar with a stem: two rectangles that share an edge. Corners in the block's own frame.
BAR_BOX = (-60.0, 0.0, 60.0, 30.0)  # low x, low y, high x, high y
STEM_BOX = (-15.0, 30.0, 15.0, 120.0)
BAR_VERTICES = ((-60.0, 30.0), (60.0, 30.0), (60.0, 0.0), (-60.0, 0.0))
STEM_VERTICES = ((-15.0, 30.0), (-15.0, 120.0), (15.0, 120.0), (15.0, 30.0))
BLOCK_AREA_PX2 = 120.0 * 30.0 + 30.0 * 90.0
BLOCK_MASS = 1.0
BLOCK_MOMENT = 3000.0  # twice the bar's own moment, as published; the stem's is not counted
BLOCK_CENTER_OF_GRAVITY = (0.0, 45.0)

GOAL_POSE = (256.0, 256.0, math.pi / 4)
SUCCESS_COVERAGE = 0.95

KEYPOINT_COUNT = 9
LOCAL_KEYPOINTS = np.array(
    [
        [9.270, 90.041],
        [-60.983, -1.187],
        [60.913, -1.393],
        [-0.271, 25.544],
        [-14.065, 122.816],
        [39.003, 32.857],
        [-39.966, 32.730],
        [-16.824, 62.863],
        [23.541, -1.700],
    ]
)
LOCAL_KEYPOINTS.flags.writeable = False
LOCAL_OUTLINE = np.array(  # the block as one polygon of eight corners
    [(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], dtype=np.float64
)
LOCAL_OUTLINE.flags.writeable = False


def to_world(local_points: np.ndarray, x: float, y: float, angle: float) -> np.ndarray:
    """Convert points [n, 2] of the block's frame to world points [n, 2] (px), with the block at (x, y, angle)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation_transposed = np.array([[cosine, sine], [-sine, cosine]])
    return local_points @ rotation_transposed + (x, y)


def block_keypoints(x: float, y: float, angle: float) -> np.ndarray:
    """The nine block keypoints [9, 2] in px for the pose (x, y, angle)."""
    return to_world(LOCAL_KEYPOINTS, x, y, angle)


def reward_of_coverage(covered: float) -> float:
    """The published reward, clip(coverage / 0.95, 0, 1)."""
    return min(max(covered / SUCCESS_COVERAGE, 0.0), 1.0)
