"""The env that a checkpoint names; a checkpoint is data, so its env imports no module of its own choice.

gymnasium imports `module` for the id "module:Env". Settings that a user types or writes into a task may do that.
"""

import gymnasium

from diffpolicy.evaluation.settings import EnvConfig
from diffpolicy.policy.protocol import Policy
from diffpolicy.system.plain import shown
from diffpolicy.system.schema import read_settings

OURS = "diffpolicy_envs"
GYM_WRAPPERS = "GymV"  # GymV26Environment-v0, with shimmy: an env of old gym, which imports what its arguments name


def saved_env(policy: Policy, where: str, trust_env: bool = False) -> EnvConfig:
    """The env in the metadata of a policy's checkpoint.

    Args:
        where: begins the error message.
        trust_env: whether its id may name any module.

    Raises:
        ValueError: it is no env, or its id is neither of diffpolicy_envs nor registered already, and not trusted.
    """
    env = read_settings(EnvConfig, policy.metadata.get("env"), f"{where}: env")
    module, _, name = env.id.rpartition(":")
    is_known = module == OURS or (not module and name in gymnasium.registry and not name.startswith(GYM_WRAPPERS))
    if not (trust_env or is_known):
        raise ValueError(
            f"{where}: its env {shown(env.id)} is neither of {OURS} nor registered, and making it may run code of a "
            "module that the checkpoint names; if you trust it, add trust_env=true, or task=NAME of a task of your own"
        )
    return env
