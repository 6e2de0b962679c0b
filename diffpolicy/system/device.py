"""The choice of the device that tensors live on."""

import torch


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first of cuda, mps and cpu that is available.

    Raises:
        ValueError: the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [kind for kind, is_there in available.items() if is_there]
    if name == "auto":
        return torch.device(there[0])
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # which one depends on how torch was built
        raise ValueError(f"device: {name!r} is not available, expected auto or one of {', '.join(there)}") from error
    return device
