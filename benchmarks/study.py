"""One choice at a time around a base network, at an equal number of images: `make study`.

Trains on part of the training images and evaluates on others of them, never on the test images:
a study is for choosing. Certificates are those of the statement *network*. Rows that are there
already are not trained again.
"""

import argparse
import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from rich.console import Console
from rich.table import Table
from workers import each_on_a_core

from lipdeploy.exporters.validation import certified_shares
from lipdeploy.report.console import print_note
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.data import Dataset, LabelledImages, load_folder
from lipdeploy.training.loop import Trainer
from lipdeploy.training.metrics import EpochMetrics
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.sampling import split_validation

RESULTS = Path(__file__).parent / "results" / "study-cpu.json"
MODELS = Path("runs") / "study"
IMAGES, HELD = 10_000, 2_000
RADII = (36, 72, 108)
SEEDS = (0, 1, 2)
SPLIT_SEED = 1234
TIMED_STEPS = 6
BASE = {"width": 16, "head": "lln"}
SCHEDULE: dict[str, Any] = {"epochs": 6, "batch_size": 128, "precision": "bfloat16"}

SHORTER = {"offset": 0.2, "temperature": 0.125}
"""Half of the default: softplus has half the slope of the identity where its argument is small."""


@dataclass(frozen=True)
class Variant:
    """A row of the table: what differs from the base.

    Attributes:
        name: for people.
        shape: of the architecture.
        options: of the training.
        seeds: how often it is trained.
    """

    name: str
    shape: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS[:1]

    @property
    def file_name(self) -> str:
        """The name without what does not belong into one."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower())


VARIANTS = (
    Variant("base: SOC, LLN head, width 16, depth 5", seeds=SEEDS),
    Variant("linear head", {"head": "linear"}),
    Variant("MLP head", {"head": "mlp"}, seeds=SEEDS),
    Variant("MLP head, u 0.2, T 0.125", {"head": "mlp"}, SHORTER, SEEDS),
    Variant("MLP head, curvature penalty 0.1", {"head": "mlp"}, {"curvature": 0.1}),
    Variant("MLP head, curvature penalty 0.5", {"head": "mlp"}, {"curvature": 0.5}),
    Variant("zero padding", {"padding": "zero"}),
    Variant("projection pooling", {"pooling": "projection"}),
    Variant("Householder activation", {"activation": "householder"}),
    Variant("Householder activation, order 2", {"activation": "householder2"}),
    Variant("u 0.8, T 0.5", options={"offset": 0.8, "temperature": 0.5}, seeds=SEEDS),
    Variant("u 1.41, T 0.25", options={"offset": 1.41}),
    Variant("u 0.35, T 0.06", options={"offset": 0.35, "temperature": 0.06}),
    Variant("width 8", {"width": 8}),
    Variant("BCOP, width 8", {"layer": "bcop", "width": 8}),
    Variant("AOC, width 8", {"layer": "aoc", "width": 8}),
    Variant("Cayley, width 8", {"layer": "cayley", "width": 8}),
    Variant("BRO, width 8", {"layer": "bro", "width": 8}),
    Variant("AOL, width 8", {"layer": "aol", "width": 8}),
    Variant("SLL, width 8", {"layer": "sll", "width": 8}),
    Variant("width 32", {"width": 32}),
    Variant("depth 10", {"depth": 10}),
    Variant("depth 15", {"depth": 15}),
)


class Stopwatch:
    """Watches a run and notes when its steps end.

    Attributes:
        times: CPU seconds of the process.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """Note the time."""
        self.times.append(time.process_time())

    @property
    def step_seconds(self) -> float:
        """Median CPU time from the end of a step to that of the next."""
        return statistics.median(end - start for start, end in pairwise(self.times))

    def epoch(self, metrics: EpochMetrics) -> None:
        """Of no interest."""


@dataclass(frozen=True)
class Run:
    """What one training reached.

    Attributes:
        name: of the variant.
        seed: of weights, order and augmentation.
        clean: share of right answers.
        certified: shares certified beyond each of `RADII`, in units of 1/255.
    """

    name: str
    seed: int
    clean: float
    certified: tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """A run that is to be made.

    Attributes:
        variant: what is trained.
        seed: of it.
        data: folder of the images.
        deadline: in seconds of `time.time`, after which it is not begun.
    """

    variant: Variant
    seed: int
    data: Path
    deadline: float


@cache
def images(data: Path) -> tuple[Dataset, LabelledImages]:
    """What every run trains on, and what it is judged by."""
    whole = load_folder(data, None, 1, lambda done, total: None)
    used, _ = split_validation(whole.images, 1 - (IMAGES + HELD) / len(whole.images), SPLIT_SEED)
    training, held = split_validation(used, HELD / len(used), SPLIT_SEED)
    return Dataset(whole.name, whole.classes, training), held


def trainer_of(variant: Variant, seed: int, dataset: Dataset, folder: str) -> Trainer:
    """What trains a variant into a folder."""
    shape = Architecture(32, len(dataset.classes), **(BASE | variant.shape))
    options = TrainingOptions(**(SCHEDULE | variant.options), seed=seed, validation=0)
    return Trainer(dataset, shape, options, Path(folder) / "run", "make study")


def run(task: Task) -> Run | None:
    """Train and evaluate one network, where there is time."""
    if time.time() > task.deadline:
        return None
    variant, (dataset, held) = task.variant, images(task.data)
    with TemporaryDirectory() as folder:
        trainer = trainer_of(variant, task.seed, dataset, folder)
        trainer.run(Stopwatch())
        network = load_model(trainer.model_path).network
        # Right answers are those that are certified beyond a negative radius.
        clean, *certified = certified_shares(network, held, (-1, *RADII))
        MODELS.mkdir(parents=True, exist_ok=True)
        shutil.move(trainer.model_path, MODELS / f"{variant.file_name}-{task.seed}.pt")
    return Run(variant.name, task.seed, clean, tuple(certified))


def step_seconds(variant: Variant, data: Path) -> float:
    """CPU seconds of a step of one thread."""
    dataset, _ = images(data)
    few = dataset.images.select(torch.arange(TIMED_STEPS * SCHEDULE["batch_size"]))
    once = replace(variant, options=variant.options | {"epochs": 1})
    with TemporaryDirectory() as folder:
        stopwatch = Stopwatch()
        trainer_of(once, 0, replace(dataset, images=few), folder).run(stopwatch)
    return stopwatch.step_seconds


@dataclass
class Results:
    """What is kept in `RESULTS`.

    Attributes:
        runs: what was trained.
        step_seconds: CPU seconds of a step, by the name of the variant.
    """

    runs: list[Run] = field(default_factory=list)
    step_seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Self:
        """What is there."""
        if not RESULTS.is_file():
            return cls()
        kept = json.loads(RESULTS.read_text())
        runs = [Run(**row | {"certified": tuple(row["certified"])}) for row in kept["runs"]]
        return cls(runs, kept["step_seconds"])

    def write(self) -> None:
        """Keep it."""
        RESULTS.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def missing(self) -> Iterator[tuple[Variant, int]]:
        """What is not trained, rows of several seeds first."""
        done = {(found.name, found.seed) for found in self.runs}
        for variant in sorted(VARIANTS, key=lambda variant: -len(variant.seeds)):
            for seed in variant.seeds:
                if (variant.name, seed) not in done:
                    yield variant, seed

    def trained(self) -> Iterator[tuple[Variant, list[Run]]]:
        """Each variant that was, with its runs."""
        for variant in VARIANTS:
            if found := [row for row in self.runs if row.name == variant.name]:
                yield variant, found


def percent(values: list[float]) -> str:
    """The mean, and the largest distance from it where there are several."""
    mean = 100 * statistics.mean(values)
    spread = max(abs(100 * value - mean) for value in values)
    return f"{mean:.1f}" + (f" ± {spread:.1f}" if len(values) > 1 else "")


def print_table(results: Results) -> None:
    """One line a variant."""
    title = (
        f"{IMAGES:,} images of cifar10-jpeg, {SCHEDULE['epochs']} epochs, {HELD:,} other training "
        f"images, %; ± is the largest distance of a seed from the mean, a standard error of one is "
        f"1.1; the last column is CPU seconds of a step of {SCHEDULE['batch_size']} images"
    )
    table = Table("", "seeds", "clean", *(f"{r}/255" for r in RADII), "a step", title=title)
    for variant, found in results.trained():
        columns = [[row.clean for row in found]]
        columns += [[row.certified[i] for row in found] for i in range(len(RADII))]
        seconds = f"{results.step_seconds.get(variant.name, math.nan):.2f} s"
        table.add_row(variant.name, str(len(found)), *map(percent, columns), seconds)
    Console(width=110).print(table)


def main() -> None:
    """Train what is missing, time the steps, then print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/cifar10-jpeg"))
    parser.add_argument("--minutes", type=float, default=90.0, help="begin no run after that")
    asked = parser.parse_args()
    deadline = time.time() + 60 * asked.minutes
    results = Results.read()
    tasks = [Task(variant, seed, asked.data, deadline) for variant, seed in results.missing()]
    for found in filter(None, each_on_a_core(run, tasks)):
        results.runs.append(found)
        print_note(str(found))
        results.write()
    torch.set_num_threads(1)
    for variant, _ in results.trained():
        if variant.name not in results.step_seconds:
            results.step_seconds[variant.name] = step_seconds(variant, asked.data)
            results.write()
    print_table(results)


if __name__ == "__main__":
    main()
