"""Why torch cannot use a GPU: asked where one trains and where one predicts."""

import warnings

import torch

from lipdeploy.versions import REINSTALL_TORCH


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
