"""What was measured, as rows: for the table, the file and the picture."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from inference.cases import CERTIFICATE, Measured
from inference.engines import WITH
from inference.memory import measured_peak
from inference.networks import multiplications
from inference.opponents import SERIES_15
from inference.plain import SMOOTHING_SAMPLES, STRIDED


@dataclass(frozen=True)
class Row:
    """One opponent on one network at one batch size.

    Attributes:
        factor: what this case varies.
        label: the network, for people.
        width: channels after the first layer.
        depth: 5 k.
        image_size: side of the input.
        padding: "circular" or "zero".
        head: of the network, as in `Architecture`.
        batch: images a call.
        opponent: what ran.
        kind: how: a memory format of PyTorch, or a runtime.
        milliseconds: median of a call.
        quartiles: first and third, milliseconds.
        rounds: how many numbers the median is taken of.
        certified: milliseconds with certificates; None for what has none.
        images: a second, with certificates where there are any.
        speedup: over 15 terms in PyTorch, likewise; None where these were not timed.
        matmul: `multiplications` a second as a fraction of the MatMul rate of this machine; None
            for other networks.
        bandwidth: weights read once a call, as a fraction of the bandwidth of this machine.
        difference: of logits from float64, relative to the largest; None for other networks.
        peak: bytes of memory beyond that of the libraries; None where it was not measured.
    """

    factor: str
    label: str
    width: int
    depth: int
    image_size: int
    padding: str
    head: str
    batch: int
    opponent: str
    kind: str
    milliseconds: float
    quartiles: tuple[float, float]
    rounds: int
    certified: float | None
    images: float
    speedup: float | None
    matmul: float | None
    bandwidth: float
    difference: float | None
    peak: int | None


@dataclass
class Results:
    """Rows, and what is not in them.

    Attributes:
        machine: processor, versions, threads.
        rows: what was measured.
        skipped: what was not, and why.
        notes: what else was found.
        build_seconds: what building each engine took, of the first case.
    """

    machine: dict[str, str | int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    build_seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Results") -> None:
        """Take in what another process measured on this machine."""
        self.rows += other.rows
        self.skipped += other.skipped
        self.notes += [note for note in other.notes if note not in self.notes]

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        rows = [Row(**row | {"quartiles": tuple(row["quartiles"])}) for row in content["rows"]]
        return cls(**content | {"rows": rows})


def describe_machine() -> dict[str, str | int]:
    """What decides on times."""
    return {
        "processor": processor(),
        "cpus": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "not set"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def processor() -> str:
    """Name of the processor, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def rows_of(measured: Measured, *, memory: bool) -> list[Row]:
    """A row for each opponent that was timed; `memory` measures each again, in its own process."""
    return [
        _row(measured, name, memory=memory)
        for name in measured.opponents
        if name in measured.timings
    ]


def _row(measured: Measured, name: str, *, memory: bool) -> Row:
    shape, batch = measured.case.architecture, len(measured.pixels)
    opponent, timings = measured.opponents[name], measured.timings
    machine, same = measured.machine, name in measured.differences
    work = batch * multiplications(shape)
    alone, slow = timings[name], timings.get(SERIES_15)
    whole = timings.get(name + WITH)
    first, third = alone.spread
    return Row(
        factor=measured.case.factor,
        label=measured.case.label,
        width=shape.width,
        depth=shape.depth,
        image_size=shape.image_size,
        padding=shape.padding,
        head=shape.head,
        batch=batch,
        opponent=name,
        kind=opponent.kind,
        milliseconds=1e3 * alone.median,
        quartiles=(1e3 * first, 1e3 * third),
        rounds=len(alone.rounds),
        certified=1e3 * whole.median if whole else None,
        images=batch / (whole or alone).median,
        speedup=slow.over(whole or alone) if slow else None,
        matmul=work / alone.median / machine.multiplications if same else None,
        bandwidth=opponent.weights / alone.median / machine.bytes,
        difference=measured.differences.get(name),
        peak=measured_peak(opponent, measured.pixels) if memory else None,
    )


def skips_of(label: str, skipped: Mapping[str, str]) -> list[str]:
    """A line for each thing that was not measured."""
    return [f"{label}: {name}: {reason}" for name, reason in skipped.items()]


def notes_of(measured: Measured) -> list[str]:
    """The machine's rates in these rounds, the certificate alone, what smoothing would cost."""
    timings, batch = measured.timings, len(measured.pixels)
    machine = measured.machine
    where = f"{measured.case.label}, batch {batch}"
    notes = [
        f"{where}: this machine does {machine.multiplications / 1e9:.1f}e9 multiplications/s "
        f"(MatMul) and reads {machine.bytes / 1e9:.1f} GB/s",
    ]
    if measured.certificate_share is not None:
        notes.append(
            f"{where}: certificates by the graph add {measured.certificate_share:.1%} to a call"
        )
    if CERTIFICATE in timings:
        notes.append(
            f"{where}: certificates by the host take {1e3 * timings[CERTIFICATE].median:.3f} ms"
        )
    if STRIDED in timings:
        passes = batch * len(timings[STRIDED].rounds)
        seconds = SMOOTHING_SAMPLES * timings[STRIDED].median / batch
        notes.append(
            f"{where}: one certificate of randomised smoothing ({SMOOTHING_SAMPLES:,} forward "
            f"passes of the strided CNN, scaled from at least {passes:,}) takes {seconds:.1f} s"
        )
    return notes
