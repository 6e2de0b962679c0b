"""The choice of the device that tensors live on, and what the last bits of a result depend on."""

import platform

import numpy as np
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


def conditions(device: torch.device) -> dict[str, str]:
    """What the last bits of a computation depend on besides its input: versions, processor, device and threads.

    Sums are split among the threads, and every processor has kernels of its own.
    """
    is_cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "device": f"cuda {torch.cuda.get_device_name(device)}" if is_cuda else device.type,
    }
