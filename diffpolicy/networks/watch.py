"""Notices that the weights of a network have changed, so that copies of them can be kept until then."""

import torch
from torch import Tensor, nn

SAMPLES = 8  # values compared per parameter


class Watch:
    """The parameters of a network as they are now.

    A change by torch (an optimiser, an average, `load_state_dict`), another tensor or another layer is always noticed.
    Writing through `.data` or numpy, which torch does not count, is noticed if it changes one of SAMPLES values that
    are spread over each parameter.
    """

    def __init__(self, network: nn.Module) -> None:
        tables = [table for module in network.modules() for table in (module._parameters, module._modules)]
        self._entries = [(table, name, entry) for table in tables for name, entry in table.items()]
        parameters = list(network.parameters())
        self._places = [(one, one.data_ptr(), _version(one)) for one in parameters]
        flat = [one.detach().reshape(-1) for one in parameters if one.numel()]
        self._samples = [one[:: max(1, len(one) // SAMPLES)] for one in flat]  # views, which keep the places in use
        self._values = torch.cat(self._samples)

    def is_unchanged(self) -> bool:
        """Whether the network still has these parameters with these values."""
        return (
            all(table.get(name) is entry for table, name, entry in self._entries)
            and all(one.data_ptr() == place and _version(one) == version for one, place, version in self._places)
            and torch.equal(torch.cat(self._samples), self._values)
        )


def _version(parameter: Tensor) -> int:
    """How often torch has written to it; tensors made in inference mode do not count that."""
    return 0 if parameter.is_inference() else parameter._version
