"""What a training step takes, beside the paper's; `make bench-train`.

The opponent is in `paper`. Both sides take the same steps: forward, loss, backward, gradients cut
to a length, one step of the optimizer.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from inference.results import describe_machine
from inference.timing import Timing, interleave
from rich.console import Console
from rich.table import Table
from steps import OURS, PAPER, QUICK, WHOLE, Case, Side, padding_of, sides
from workers import each_on_a_core

from lipdeploy.exporters.validation import certified_shares
from lipdeploy.report.console import print_json, print_note
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.data import load_folder
from lipdeploy.training.sampling import Share, augment, channel_mean, epoch_parts

SECONDS = 20.0
"""Of timing a case, about."""

IMAGES, HELD, EPOCHS, SEEDS = 10_000, 2_000, 3, (0, 1, 2)
"""Of the runs that compare accuracy."""


def timed(case: Case) -> dict[str, Timing]:
    """Both sides in turns."""
    print_note(f"LipConvNet-{case.depth}, width {case.width}, batch {case.batch}")
    timings, skipped = interleave(sides(case), SECONDS, longest=60.0)
    if skipped:
        raise RuntimeError(f"not timed: {skipped}")
    return timings


def print_steps(measured: dict[Case, dict[str, Timing]]) -> None:
    """The table of steps."""
    table = Table("network", "batch", "paper", "lipdeploy", "times as fast", title="A step")
    for case, timings in measured.items():
        cells = []
        for name in (PAPER, OURS):
            low, high = timings[name].spread
            cells.append(f"{timings[name].median:.3f} s ({low:.3f} to {high:.3f})")
        ratio = timings[PAPER].over(timings[OURS])
        label = f"LipConvNet-{case.depth}, width {case.width}"
        table.add_row(label, str(case.batch), *cells, f"{ratio:.2f}")
    Console(width=110).print(table)


def summary(measured: dict[Case, dict[str, Timing]]) -> dict[str, float]:
    """The smallest ratio of each width of LipConvNet-5, and of LipConvNet-15."""
    ratios: dict[str, list[float]] = {}
    for case, timings in measured.items():
        name = f"speedup_width{case.width}" + ("_depth15" if case.depth == 15 else "")
        ratios.setdefault(name, []).append(timings[PAPER].over(timings[OURS]))
    return {name: round(min(found), 3) for name, found in ratios.items()}


@dataclass(frozen=True)
class Trained:
    """What one run reached, on images of the training part that it did not see."""

    name: str
    seed: int
    seconds: float
    clean: float
    certified: float


def train(asked: tuple[str, int, Path]) -> Trained:
    """Train width 16 for a few epochs, then certify it (statement *network*)."""
    name, seed, folder = asked
    images = load_folder(folder, None, 1, lambda done, total: None).images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    training, held = images.select(order[:IMAGES]), images.select(order[IMAGES : IMAGES + HELD])
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    mean = channel_mean(training)
    shape = Architecture(32, 10, width=16, padding=padding_of(name))
    side = Side(name, shape, mean, EPOCHS * (IMAGES // 128))
    start = time.process_time()
    for _ in range(EPOCHS):
        for part in epoch_parts(len(training), Share(128, 1), 4, generator):
            chosen = training.select(part.indices)
            side.step(augment(chosen.pixels.float(), mean, part.moves), chosen.labels)
    seconds = time.process_time() - start
    # Right answers are those that are certified beyond a negative radius.
    clean, certified = certified_shares(side.network.eval(), held, (-1, 36))
    return Trained(name, seed, seconds, clean, certified)


def print_runs(runs: list[Trained]) -> None:
    """The table of accuracies."""
    title = (
        f"Width 16, {IMAGES:,} images, {EPOCHS} epochs, one thread each, {HELD:,} other images, %"
    )
    table = Table("", "seed", "CPU seconds", "clean", "certified at 36/255", title=title)
    for run in runs:
        cells = f"{run.seconds:.0f}", f"{100 * run.clean:.1f}", f"{100 * run.certified:.1f}"
        table.add_row(run.name, str(run.seed), *cells)
    Console(width=110).print(table)


def trained(data: Path) -> list[Trained]:
    """Both sides with every seed; says what each reached as soon as it is there."""
    items = [(name, seed, data) for name in (PAPER, OURS) for seed in SEEDS]
    runs = []
    for run in each_on_a_core(train, items):
        print_note(str(run))
        runs.append(run)
    return sorted(runs, key=lambda run: (run.seed, run.name))


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="steps of LipConvNet-5 alone")
    parser.add_argument("--accuracy", action="store_true", help="what both reach, and no steps")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10-jpeg"))
    asked = parser.parse_args()
    print(describe_machine())
    cases = () if asked.accuracy else QUICK if asked.quick else WHOLE
    measured = {case: timed(case) for case in cases}
    if measured:
        print_steps(measured)
    runs = [] if asked.quick else trained(asked.data)
    if runs:
        print_runs(runs)
    print_json(summary(measured) | ({"runs": [asdict(run) for run in runs]} if runs else {}))


if __name__ == "__main__":
    main()
