"""Compiled passes of a network by `torch.compile`, and what to do where that fails."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lipdeploy.errors import TrainingError


def compiled(network: nn.Module) -> nn.Module:
    """The same network, with the same weights, compiled when it is first called."""
    with warnings.catch_warnings(action="ignore"):  # torch's own old parts
        module: nn.Module = torch.compile(network, dynamic=False)
    return module


@contextmanager
def compiling() -> Iterator[None]:
    """A context for calls of `compiled` networks; what torch warns of in it is not shown.

    Raises:
        TrainingError: in place of the compiler's failures.
    """
    with warnings.catch_warnings(action="ignore"):
        # Takes a second, for which only those wait who compile.
        from torch._dynamo.exc import TorchDynamoException

        try:
            yield
        except TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
            raise TrainingError(
                f"the network cannot be compiled ({reason[:150]}); leave out --compile, or install "
                "a C++ compiler that torch can use, such as g++"
            ) from error
