"""Hydra schemas for the settings of every choice; a file in configs/sampler starts with `defaults: [NAME_schema]`."""

from collections.abc import Mapping
from typing import Any

from hydra.core.config_store import ConfigStore

from diffpolicy.policy.build import BACKBONES, CODECS, ENCODERS
from diffpolicy.policy.objective_choices import OBJECTIVES
from diffpolicy.policy.sampler_choices import SAMPLERS_AND_AUTO
from diffpolicy.system.tables import Entry

GROUPS: Mapping[str, Mapping[str, Entry[Any]]] = {
    "sampler": SAMPLERS_AND_AUTO,
    "model": BACKBONES,
    "encoder": ENCODERS,
    "codec": CODECS,
    "diffusion": OBJECTIVES,
}


def register_choices() -> None:
    """Register the schemas with hydra as GROUP/NAME_schema."""
    for group, table in GROUPS.items():
        for name, entry in table.items():
            ConfigStore.instance().store(group=group, name=f"{name}_schema", node=entry.settings(name=name))
