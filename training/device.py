"""Devices by name, and why torch cannot use one."""

import re
import warnings

import torch

from lipdeploy.choices import DEVICES, check_choice
from lipdeploy.errors import TrainingError
from lipdeploy.versions import REINSTALL_TORCH


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


def cuda_problem(name: str = "cuda") -> tuple[str, str] | None:
    """Why torch cannot use a GPU, and what mends it; None where it can."""
    found = f"torch {torch.__version__}"
    if not torch.backends.cuda.is_built():
        return f"{found} is a build without CUDA", f"with an NVIDIA GPU {REINSTALL_TORCH}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.ones(1, device=name).add(1).cpu()
    except RuntimeError as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        return f"{found} has no usable GPU ({reason})", "check nvidia-smi"
    return None
