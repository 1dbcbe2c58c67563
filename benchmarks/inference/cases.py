"""One network at several batch sizes: everything that computes it is built, checked and timed."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from inference.engines import PLANNED, WITH, CertifiedEngine, open_engine, relative_difference
from inference.networks import pixels_of, write_model
from inference.opponents import (
    MODULES,
    SERIES_6,
    SERIES_15,
    Opponent,
    Pixels,
    fastest_of,
    torch_opponents,
)
from inference.plain import PLAIN, STRIDED, exported_opponents, plain_cnn, strided_cnn
from inference.timing import Machine, Timing, cpu_functions, interleave, share_added
from lipdeploy.exporters.stages import Stage
from lipdeploy.report.console import print_note
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.checkpoint import load_model

TOLERANCE = 1e-4
"""Largest difference of 15 terms from float64, relative to the largest logit."""

CHECKED = 8
"""Images on which logits are compared with float64."""

CERTIFICATE = "certificate alone"


class WrongOpponentError(Exception):
    """An opponent does not compute the network that it is compared for."""


@dataclass(frozen=True)
class Case:
    """A network, at some batch sizes.

    Attributes:
        factor: what is varied, or "centre".
        architecture: the shapes.
        batches: images a call.
        variants: names of the engines that are built, see `engines.VARIANTS`.
        series: names of the opponents that compute the same network, see `opponents.MODULES`.
        others: how opponents are made that compute something else at the same shapes.
        build_seconds: when these are over, no further layer or stage of building an engine begins.
        seconds: what timing one batch size may take, about.
    """

    factor: str
    architecture: Architecture
    batches: tuple[int, ...]
    variants: tuple[str, ...] = (PLANNED,)
    series: tuple[str, ...] = (SERIES_15, SERIES_6)
    others: Mapping[str, Callable[[Architecture], nn.Module]] = field(
        default_factory=lambda: {PLAIN: plain_cnn, STRIDED: strided_cnn}
    )
    build_seconds: float = 120.0
    seconds: float = 30.0

    @property
    def label(self) -> str:
        """The shapes, for people."""
        shape = self.architecture
        label = f"LipConvNet-{shape.depth}, width {shape.width}, {shape.image_size} px"
        if shape.padding != "circular":
            label += f", {shape.padding} padding"
        return label if shape.head == "lln" else f"{label}, {shape.head} head"


@dataclass(frozen=True)
class Built:
    """What computes a network, by name.

    Attributes:
        engines: ours.
        series: opponents that compute the same.
        others: opponents that compute something else.
        seconds: what building each engine took.
        skipped: why the rest could not be built.
    """

    engines: dict[str, CertifiedEngine] = field(default_factory=dict)
    series: dict[str, nn.Module] = field(default_factory=dict)
    others: dict[str, nn.Module] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One network at one batch size.

    Attributes:
        case: which network.
        pixels: the input of a call.
        opponents: by name; an opponent in PyTorch in its faster memory format.
        timings: by name, of opponents, engines with certificates, and the certificate alone.
        machine: what the machine can do, measured in the same rounds.
        differences: largest difference of logits from float64, relative to the largest logit.
        certificate_share: what certificates add to the time of `PLANNED`, or of the first engine;
            None where that is too slow to be timed.
        skipped: why others were not timed.
    """

    case: Case
    pixels: Pixels
    opponents: dict[str, Opponent]
    timings: dict[str, Timing]
    machine: Machine
    differences: dict[str, float]
    certificate_share: float | None
    skipped: dict[str, str] = field(default_factory=dict)


def at_most(seconds: float) -> Stage:
    """Raise TimeoutError at the first stage or layer that begins later than in so many seconds."""
    end = time.monotonic() + seconds

    def stage(name: str) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"{seconds:.0f} s were over before: {name}")

    return stage


@contextmanager
def or_skip(name: str, skipped: dict[str, str]) -> Iterator[None]:
    """Note why something cannot be done, whatever the reason, and go on without it."""
    try:
        yield
    # Opponents and peers fail in ways of their own.
    except Exception as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        skipped[name] = f"{type(error).__name__}: {reason}"


def build(case: Case, model: Path, batch: int) -> Built:
    """Build engines and opponents of the network in a model file, for a batch size."""
    built = Built()
    network = load_model(model).network
    for name in case.variants:
        with or_skip(name, built.skipped):
            print_note(f"{case.label}, batch {batch}: building {name}")
            start = time.perf_counter()
            built.engines[name] = open_engine(model, name, batch, at_most(case.build_seconds))
            built.seconds[name] = time.perf_counter() - start
    for name in case.series:
        with or_skip(name, built.skipped):
            built.series[name] = MODULES[name](network)
    for name, make in case.others.items():
        with or_skip(name, built.skipped):
            built.others[name] = make(case.architecture)
    return built


def opponents_of(built: Built, pixels: Pixels, skipped: dict[str, str]) -> dict[str, Opponent]:
    """Each module in its fastest way to run on these pixels, and the engines."""
    chosen = {name: fastest_of(torch_opponents(m), pixels) for name, m in built.series.items()}
    for name, module in built.others.items():
        with or_skip(name, skipped):
            chosen[name] = fastest_of(exported_opponents(module, pixels), pixels)
    return chosen | {name: engine.opponent() for name, engine in built.engines.items()}


def differences_of(
    built: Built, opponents: dict[str, Opponent], pixels: Pixels
) -> dict[str, float]:
    """Differences from float64 of all that compute the network.

    Raises:
        WrongOpponentError: if 15 terms are further off than `TOLERANCE`, or nothing was built to
            compare with.
    """
    if not built.engines:
        raise WrongOpponentError(f"no engine could be built to compare with: {built.skipped}")
    # An engine with rounded weights is another network, with a reference of its own.
    references = {name: e.reference(pixels[:CHECKED]) for name, e in built.engines.items()}
    of_all = next(iter(references.values()))
    differences = {
        name: relative_difference(
            opponents[name].run(pixels)[:CHECKED], references.get(name, of_all)
        )
        for name in [*built.series, *built.engines]
    }
    for name, engine in built.engines.items():
        check_radii(name, engine, pixels)
    if not differences[SERIES_15] <= TOLERANCE:
        raise WrongOpponentError(
            f"{SERIES_15} differs from float64 by {differences[SERIES_15]:.1e}, expected at most "
            f"{TOLERANCE:.0e}: it is no opponent"
        )
    return differences


def check_radii(name: str, engine: CertifiedEngine, pixels: Pixels) -> None:
    """Raise WrongOpponentError unless the radii that are timed are sound and not just small."""
    served, host = engine.serve(pixels), engine.radii(engine.answers(pixels)) / 255
    if not (np.all(served <= host) and np.all(served >= 0.9 * host - 0.01)):
        raise WrongOpponentError(f"{name}: radii {served} in the graph, {host} by the host")


def functions_of(
    built: Built, opponents: dict[str, Opponent], pixels: Pixels
) -> dict[str, Callable[[], object]]:
    """What is timed: all opponents, engines with certificates, the host's certificate alone."""
    functions: dict[str, Callable[[], object]] = {
        name: partial(opponent.run, pixels) for name, opponent in opponents.items()
    }
    for name, engine in built.engines.items():
        functions[name + WITH] = partial(engine.serve, pixels)
    planned = built.engines[planned_of(built)]
    return functions | {CERTIFICATE: partial(planned.radii, planned.answers(pixels))}


def planned_of(built: Built) -> str:
    """Name of the engine that stands for all: `PLANNED`, or the first."""
    return PLANNED if PLANNED in built.engines else next(iter(built.engines))


def certificate_share(built: Built, functions: Mapping[str, Callable[[], object]]) -> float:
    """What the output `radius` adds to the time of that engine, as a share of it."""
    planned = planned_of(built)
    return share_added(functions[planned], functions[planned + WITH])


def measure(case: Case, built: Built, model: Path, batch: int) -> Measured:
    """Check and time everything that was built at one batch size."""
    pixels = pixels_of(model, batch)
    skipped: dict[str, str] = {}
    opponents = opponents_of(built, pixels, skipped)
    differences = differences_of(built, opponents, pixels)
    print_note(f"{case.label}, batch {batch}: timing for about {case.seconds:.0f} s")
    functions = functions_of(built, opponents, pixels)
    timings, slow = interleave(cpu_functions() | functions, case.seconds)
    share = None if planned_of(built) + WITH in slow else certificate_share(built, functions)
    machine = Machine.of(timings)
    return Measured(case, pixels, opponents, timings, machine, differences, share, skipped | slow)


@contextmanager
def model_of(case: Case) -> Iterator[Path]:
    """The model file of the network of a case."""
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model.pt"
        write_model(case.architecture, model)
        yield model
