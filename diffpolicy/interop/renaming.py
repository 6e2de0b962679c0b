"""Other names for the observations of an imported policy.

The order of a condition is that of its keys, so the network's weights, the normalisers and the cameras' networks move
with the names.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from diffpolicy.interop.eyes import features_of
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
    order = columns(before, after, features_of(imported.config), imported.config.window.n_obs_steps)
    tensors = reordered(imported.tensors, order)
    for kind, part in (("vector", "normalizers"), ("image", "encoder.eyes")):
        then = [key for key in after if specs[key].kind == kind]
        now = [key for key in before if specs[key].kind == kind]
        tensors = _moved(tensors, part, {place: then.index(key) for place, key in enumerate(now)})
    normalizer = {ours.get(key, key): kind for key, kind in imported.config.normalizer.items()}
    config = replace(
        imported.config, observations={ours[key]: spec for key, spec in specs.items()}, normalizer=normalizer
    )
    return replace(imported, config=config, tensors=tensors)


def _moved(tensors: Mapping[str, Tensor], part: str, places: Mapping[int, int]) -> dict[str, Tensor]:
    """With the modules `part`.0, `part`.1, ... at other places; one that all cameras share stays."""

    def name_of(found: re.Match[str]) -> str:
        return f"{part}.{places[int(found[1])]}."

    if f"{part}.1." not in "".join(tensors):  # there is one at most
        return dict(tensors)
    return {re.sub(rf"^{re.escape(part)}\.(\d+)\.", name_of, name): value for name, value in tensors.items()}
