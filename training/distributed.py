"""Several processes that train one network: all that the project knows of torch.distributed.

torchrun starts the processes and tells each of them, in its environment, which one it is. A process
that is alone initialises nothing.
"""

import gc
import hashlib
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lipdeploy.errors import LipdeployError, ToldElsewhereError, TrainingError, UsageError
from lipdeploy.training.launched import launched

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: one may decode images for all. Where one dies, the
others are told by the closed connection, or ended by torchrun, at once."""

MOMENT = 0.1
"""Seconds that gloo's threads get at the end."""

HASH_BYTES = 6
"""Of a hash that is compared as a float64, which holds 53 bits."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: number of this process, 0 ... size - 1.
        size: how many there are.
        local_rank: number of this process on its machine.
        local_size: how many there are on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process, where several were told the same name.

        Raises:
            UsageError: if all were told the same GPU.
        """
        if self.size > 1 and name.startswith("cuda:"):
            raise UsageError(f"--device {name}: one GPU for {self.size} processes; give cuda")
        return f"cuda:{self.local_rank}" if name == "cuda" and self.size > 1 else name

    def totals(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the processes, the same on all, in float64."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self.totals([flag])[0] > 0

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.any(False)

    def from_main(self, value: T) -> T:
        """The main process's value."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def together(self, action: Callable[[], T]) -> T:
        """Do what may fail on some processes only; then it fails on all.

        Raises:
            ToldElsewhereError: on those that did not fail, or were not the first to.
        """
        if self.size == 1:
            return action()
        failure: Exception | None = None
        try:
            result = action()
        # It is raised again, here or on another process.
        except Exception as error:
            failure = error
        rank = self.rank if failure else self.size
        (first,) = self._reduced([rank], distributed.ReduceOp.MIN)
        if first == self.size:
            return result
        if failure is not None and first == self.rank:
            raise failure
        raise ToldElsewhereError(f"process {first:.0f} of {self.size} failed") from failure

    def told_once(self, message: str) -> LipdeployError:
        """The error for what all processes find at the same time, of which one speaks."""
        return TrainingError(message) if self.is_main else ToldElsewhereError(message)

    def one_first(self, action: Callable[[], T]) -> T:
        """Do on one process of each machine first what leaves something for the others to use."""
        if self.size == 1:
            return action()
        done: list[T] = []

        def act_if(is_my_turn: bool) -> None:
            if is_my_turn:
                done.append(action())

        self.together(partial(act_if, self.local_rank == 0))
        self.together(partial(act_if, self.local_rank != 0))
        return done[0]

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are means over the processes.

        Buffers are not sent around: they follow from the weights in the same way everywhere, which
        `check_same` checks.
        """
        if self.size == 1:
            return network
        with warnings.catch_warnings():
            # Newer versions of torch have another name for it, which older ones do not know.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(network, broadcast_buffers=False)

    @staticmethod
    def unshared(network: nn.Module) -> AbstractContextManager[None]:
        """A context in which gradients of `parallel` networks stay in their process."""
        if isinstance(network, DistributedDataParallel):
            return network.no_sync()
        return nullcontext()

    def check_same(self, tensors: Iterable[Tensor]) -> None:
        """Make sure that all processes hold the same bits.

        Raises:
            TrainingError: if not.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().numpy().tobytes())
        number = int.from_bytes(digest.digest()[:HASH_BYTES], "big")
        low, high = self._reduced([number, -number], distributed.ReduceOp.MIN)
        if low != -high:
            raise self.told_once(
                "the processes no longer hold the same network; run them on processors of one "
                "kind, and go on from the last checkpoint with --resume"
            )

    def _reduced(
        self, values: Sequence[float], operation: "distributed.ReduceOp.RedOpType"
    ) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, operation)
        reduced: list[float] = tensor.tolist()
        return reduced


ALONE = Processes()


def started() -> Processes:
    """The processes that torchrun started, not connected; as `ALONE` where it was not torchrun."""
    return Processes(*launched())


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes that were `started`, connected.

    Args:
        device: "auto", "cpu", "cuda", ...: gradients on GPUs are exchanged by NCCL.

    Raises:
        TrainingError: where the processes do not find each other, one of them is lost, or torchrun
            ends them.
    """
    processes = started()
    if processes.size == 1:
        yield processes
        return
    with _explaining(processes):
        _connect(device, processes.local_rank)
        yield processes
        processes.wait()
        # Gradient buckets keep the group, and its threads, alive.
        gc.collect()
        distributed.destroy_process_group()


def _connect(device: str, local_rank: int) -> None:
    uses_gpu = device != "cpu" and torch.cuda.is_available()
    if uses_gpu:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if uses_gpu else "gloo", timeout=PATIENCE)


@contextmanager
def _explaining(processes: Processes) -> Iterator[None]:
    """Say on the main process what the end of another one means."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _lost("torchrun ends this one")

    if processes.is_main:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    except RuntimeError as error:
        if not _is_broken_connection(error):
            raise
        # The main process speaks for all; without it, the next one does.
        if processes.rank > 1:
            raise ToldElsewhereError("a process was lost") from error
        raise _lost(str(error).splitlines()[0][:100]) from error
    finally:
        if processes.is_main:  # what is to be said is being said
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # gloo's threads need the interpreter to free what was exchanged last; where it is already
        # being shut down, that aborts the process.
        time.sleep(MOMENT)


def _is_broken_connection(error: RuntimeError) -> bool:
    """Whether it comes from the exchange: gloo's errors have no type of their own."""
    kinds = (distributed.DistBackendError, distributed.DistNetworkError)
    return isinstance(error, kinds) or "gloo" in str(error)


def _lost(why: str) -> TrainingError:
    return TrainingError(
        f"another process of this run failed or was ended ({why}); if nothing above says why, it "
        "was killed, perhaps for memory; go on from the last checkpoint with --resume"
    )
