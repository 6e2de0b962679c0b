"""Gymnasium environments for diffpolicy. Importing this package registers their ids.

Entry points are strings: the physics engine is imported by `gymnasium.make`, not by this import.
"""

from gymnasium.envs.registration import register

from diffpolicy_envs.pusht_world import MAX_EPISODE_STEPS

register(
    id="diffpolicy/PushT-v0",
    entry_point="diffpolicy_envs.pusht:PushTEnv",
    max_episode_steps=MAX_EPISODE_STEPS,
    # The checking wrapper repeats each step's type checks; tests/envs runs gymnasium's `check_env` instead.
    disable_env_checker=True,
)
