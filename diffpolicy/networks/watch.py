"""Notices that the weights of a network have changed, so that copies of them can be kept until then."""

import operator

import torch
from torch import Tensor, nn

SAMPLES = 8  # values compared per weight


class Watch:
    """The parameters of a network as they are now.

    A change by torch (an optimiser, an average, `load_state_dict`), another tensor or another layer is always noticed.
    Writing through `.data` or numpy, which torch does not count, is noticed if it changes one of SAMPLES values that
    are spread over each weight of two or more dimensions.
    """

    def __init__(self, network: nn.Module) -> None:
        tables = [table for module in network.modules() for table in (module._parameters, module._modules)]
        entries = [(table, name, entry) for table in tables for name, entry in table.items()]
        self._tables, self._names, self._entries = zip(*entries, strict=True) if entries else ((), (), ())
        self._parameters = list(network.parameters())
        self._counted = [one for one in self._parameters if not one.is_inference()]  # the others have no counter
        self._keep = [one.detach() for one in self._parameters]  # or another tensor could take their place in memory
        weights = [one.reshape(-1) for one in self._keep if one.dim() > 1 and one.numel()]
        self._samples = [one[:: max(1, len(one) // SAMPLES)] for one in weights]  # views
        self._places, self._versions, self._values = self._now()

    def is_unchanged(self) -> bool:
        """Whether the network still has these parameters with these values."""
        if not all(map(operator.is_, map(dict.get, self._tables, self._names), self._entries)):  # no Python per entry
            return False
        places, versions, values = self._now()
        return places == self._places and versions == self._versions and torch.equal(values, self._values)

    def _now(self) -> tuple[list[int], list[int], Tensor]:
        places = [one.data_ptr() for one in self._parameters]
        return places, [one._version for one in self._counted], torch.cat(self._samples)
