"""Compiled training passes by `torch.compile`, and what to do where that fails."""

import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from lipdeploy.errors import ToldElsewhereError, TrainingError
from lipdeploy.training.distributed import Processes
from lipdeploy.training.memory_errors import is_memory_error

VERSIONS = 1024
"""Of one function, at most: each layer has its own shapes. With the 8 of torch itself deep networks
would be compiled in part."""

COMPILER_ERRORS = ("InvalidCxxCompiler", "CppCompileError")


def compiled(network: nn.Module) -> nn.Module:
    """The same network, with the same weights, compiled when it is first called."""
    with _own_warnings():
        return cast("nn.Module", torch.compile(network, dynamic=False))


@contextmanager
def compiling(processes: Processes) -> Iterator[None]:
    """A context for forward and backward passes of a `compiled` network.

    Raises:
        TrainingError: in place of the compiler's failures.
    """
    with _own_warnings(), _compilers_spared():
        # Takes a second, for which only those wait who compile.
        from torch._dynamo import config
        from torch._dynamo.exc import TorchDynamoException

        settings: dict[str, Any] = {
            "recompile_limit": VERSIONS,
            "accumulated_recompile_limit": VERSIONS,
            # It cuts graphs where buckets of gradients end, and fails on cuts of its own.
            "optimize_ddp": False,
        }
        try:
            with config.patch(settings):
                yield
        except TorchDynamoException as error:
            if is_memory_error(error):
                raise
            # Machines differ, the processes of one do not.
            kind = TrainingError if processes.local_rank == 0 else ToldElsewhereError
            raise kind(_message(error)) from error


def _message(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if not line.endswith("raised:")), repr(error))
    kind = type(getattr(error, "inner_exception", error)).__name__
    other = ", or install a C++ compiler such as g++" if kind in COMPILER_ERRORS else ""
    return f"the network cannot be compiled ({reason[:150]}); leave out --compile{other}"


@contextmanager
def _own_warnings() -> Iterator[None]:
    """A context in which torch does not warn of torch: its compiler uses old parts of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch(\.|$)")
        yield


@contextmanager
def _compilers_spared() -> Iterator[None]:
    """A context in which Ctrl-C, which a terminal sends to all, ends no process begun in it.

    This process hears it as soon as its main thread runs Python again: another thread, which begins
    no process, takes the signal.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    over = threading.Event()
    listener = threading.Thread(target=over.wait, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # Each of these calls can raise KeyboardInterrupt.
    try:
        listener.start()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        finally:
            over.set()
