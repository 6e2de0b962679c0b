"""An imported policy, built and checked."""

from typing import Any

from diffpolicy.interop.network_tensors import expected_of
from diffpolicy.interop.reading import Imported
from diffpolicy.policy.diffusion import DiffusionPolicy
from diffpolicy.system import tensor_file


def built(imported: Imported) -> DiffusionPolicy:
    """The policy, ready to act.

    Raises:
        ValueError: the tensors are not those of the settings, or not finite.
    """
    where = f"{imported.source.get('format')}: {imported.source.get('file')}"
    tensor_file.check(tensor_file.specs(imported.tensors), expected_of(imported.config, ""), where)
    tensor_file.check_finite(imported.tensors, where)
    policy = DiffusionPolicy(imported.config)
    policy.load_state_dict(imported.tensors, strict=False)
    policy.check_fitted()
    metadata: dict[str, Any] = {**imported.source, "sampler": imported.sampler, "lost": imported.lost}
    policy.metadata = {"imported": metadata}
    return policy.eval()
