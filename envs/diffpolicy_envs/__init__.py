"""Gymnasium environments for diffpolicy. Importing this package registers their ids.

Entry points are strings, so that physics and compiler are imported by `gymnasium.make` and not here.
"""

from gymnasium.envs.registration import register

from diffpolicy_envs import pusht_world, reach_world

# The checking wrapper repeats each step's type checks; tests/envs runs gymnasium's `check_env` instead.
register(
    id="diffpolicy/PushT-v0",
    entry_point="diffpolicy_envs.pusht:PushTEnv",
    max_episode_steps=pusht_world.MAX_EPISODE_STEPS,
    disable_env_checker=True,
)
register(
    id="diffpolicy/ObstacleReach-v0",
    entry_point="diffpolicy_envs.reach:ObstacleReachEnv",
    max_episode_steps=reach_world.MAX_EPISODE_STEPS,
    disable_env_checker=True,
)
