"""Devices by name."""

import re

import torch

from lipdeploy.choices import DEVICES, check_choice
from lipdeploy.errors import TrainingError
from lipdeploy.torch_cuda import cuda_problem


def chosen_device(wanted: str) -> str:
    """The name itself, or, for "auto", that of a GPU where there is one.

    Raises:
        UsageError: if it is no name of a device: "auto", "cpu", "cuda", or "cuda:1" for one of
            several GPUs.
    """
    if not re.fullmatch(r"cuda:\d+", wanted):
        check_choice("--device", wanted, DEVICES)
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str) -> torch.device:
    """The device called so; raises TrainingError where it cannot be used."""
    if name != "cpu" and (problem := cuda_problem(name)):
        reason, mend = problem
        raise TrainingError(f"--device {name}: {reason}; use --device cpu, or {mend}")
    return torch.device(name)
