"""Other names for the observations of an imported policy.

The order of a condition is that of its keys, so the network's weights and the normalisers move with the names.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from diffpolicy.interop.reading import Imported
from diffpolicy.interop.unet_names import columns, reordered


def renamed(imported: Imported, names: Mapping[str, str]) -> Imported:
    """The same policy with observations called `names[theirs]`; those that are not named keep their names.

    Raises:
        ValueError: there is no such observation, or two have the same name.
    """
    specs = imported.config.observations
    if unknown := sorted(set(names) - set(specs)):
        raise ValueError(f"rename: no observation {', '.join(unknown)}; the policy has {', '.join(sorted(specs))}")
    ours = {key: names.get(key, key) for key in specs}
    if len(set(ours.values())) < len(ours):
        raise ValueError(f"rename: two observations would have the same name: {', '.join(ours.values())}")
    if "" in ours.values():
        raise ValueError("rename: an observation needs a name of at least one letter")
    before, after = sorted(specs), sorted(specs, key=lambda key: ours[key])
    order = columns(
        before, after, {key: spec.features for key, spec in specs.items()}, imported.config.window.n_obs_steps
    )
    places = {before.index(key): place for place, key in enumerate(after)}
    normalizer = {ours.get(key, key): kind for key, kind in imported.config.normalizer.items()}
    config = replace(
        imported.config, observations={ours[key]: spec for key, spec in specs.items()}, normalizer=normalizer
    )
    return replace(imported, config=config, tensors=_moved(reordered(imported.tensors, order), places))


def _moved(tensors: Mapping[str, Tensor], places: Mapping[int, int]) -> dict[str, Tensor]:
    """With the normalisers at other places."""
    return {
        re.sub(r"^normalizers\.(\d+)\.", lambda found: f"normalizers.{places[int(found[1])]}.", name): value
        for name, value in tensors.items()
    }
