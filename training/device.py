"""Devices by name."""

import torch

from lipdeploy.errors import TrainingError


def chosen_device(wanted: str) -> str:
    """The name itself, or, for "auto", that of a GPU where there is one."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str) -> torch.device:
    """The device called so; raises TrainingError where it cannot be used."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise TrainingError(
            f"device {name!r} cannot be used ({reason}); try --device cpu"
        ) from error
    return device
