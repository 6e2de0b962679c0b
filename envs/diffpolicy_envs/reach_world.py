"""ObstacleReach's world: its numbers. Size, agent and plant are those of Push-T.

Lengths are in px. y points down in pictures.
"""

from diffpolicy_envs import pusht_world

WORLD_SIZE_PX = pusht_world.WORLD_SIZE_PX
AGENT_RADIUS_PX = pusht_world.AGENT_RADIUS_PX
POSITION_GAIN = pusht_world.POSITION_GAIN
VELOCITY_GAIN = pusht_world.VELOCITY_GAIN
SUBSTEP_S = pusht_world.SUBSTEP_S
SUBSTEPS_PER_ACTION = pusht_world.SUBSTEPS_PER_ACTION
CONTROL_RATE_HZ = pusht_world.CONTROL_RATE_HZ
MAX_EPISODE_STEPS = 100

MAX_OBSTACLES = 6
MAX_VERTICES = 4
SLOT_SIZE = 2 * MAX_VERTICES + 1  # x, y of each vertex, then the radius

GOAL_RADIUS_PX = 20.0  # success: the agent's centre is this close to the goal ...
GOAL_SPEED_PX_S = 40.0  # ... and the agent is slower than this
REWARD_BEFORE_SUCCESS = 0.99  # upper limit
REST_SPEED_PX_S = 1.0  # a slower agent counts as standing

MAX_OBSTACLE_SPEED_PX_S = 200.0  # upper limit for layouts placed by hand

# The observation has how far the agent can move in each of these directions, from +x towards +y.
FREE_DIRECTIONS = 24
FREE_RANGE_PX = 150.0

VARIANTS = ("symmetric", "narrow_gap", "random", "moving", "thin_wall")
