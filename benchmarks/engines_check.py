"""Every engine that can run here against float64, on every image of a test set.

    python benchmarks/engines_check.py MODEL DATA

Prints a table and, as its last line, one JSON object: for each engine `max_difference` of a feature
vector (l2), the proven `bound` at the image where the two are nearest, `argmax_flips`, and `ok`:
whether every image is within its bound and no flip is unexplained.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from lipdeploy.artifact import Engine
from lipdeploy.choices import Device
from lipdeploy.datasets import LabelledSources, scan_folder
from lipdeploy.engine_error import distances_upper
from lipdeploy.errors import EngineError, ExportError
from lipdeploy.exporters.engine_file import read_engine
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.options import SUFFIXES, ExportOptions
from lipdeploy.heads import NO_SLACK
from lipdeploy.images import network_input
from lipdeploy.report.console import plain_table, print_json, print_line, print_note, print_table
from lipdeploy.runtimes import Runtime
from lipdeploy.runtimes.choice import RuntimeChoice, open_runtime

BATCH = 64


@dataclass(frozen=True)
class Way:
    """Something that is compared.

    Attributes:
        name: for people.
        options: what is exported.
        runtime: what runs it.
        device: where.
    """

    name: str
    options: ExportOptions
    runtime: RuntimeChoice = "auto"
    device: Device = "cpu"


WAYS = (
    Way("onnxruntime, blocked", ExportOptions()),
    Way("onnxruntime, same-order", ExportOptions(accumulation="same-order")),
    Way("onnxruntime, any-order", ExportOptions(accumulation="any-order")),
    Way("openvino", ExportOptions(engine="openvino")),
    Way("torch", ExportOptions(), "torch"),
    Way("numpy, float64", ExportOptions(), "numpy"),
)


@dataclass
class Comparison:
    """One engine against float64, so far.

    Attributes:
        name: engine and runtime.
        engine: what runs.
        runtime: where.
        max_difference: largest l2 distance of features.
        share: largest ratio of distance to bound, and
        bound: the bound there.
        flips: images whose largest logit is another one.
        unexplained: flips although the float64 logits lead by more than the difference of logits.
        radius_difference: largest difference of a radius, errors not subtracted, in 1/255.
    """

    name: str
    engine: Engine
    runtime: Runtime
    max_difference: float = 0.0
    share: float = 0.0
    bound: float = 0.0
    flips: int = 0
    unexplained: int = 0
    radius_difference: float = 0.0

    def add(self, pixels: NDArray[np.float32]) -> None:
        """Compare a batch, shape (batch, 3, n, n)."""
        network, manifest = self.engine.network, self.engine.manifest
        exact = pixels.astype(np.float64)
        expected = network.features(exact)
        expected_logits = network.head.logits(expected)
        features, logits = self.runtime.run(pixels)
        from_centre = distances_upper(exact, network.centre)
        bounds = manifest.reference_errors.features(from_centre)
        bounds = bounds + manifest.engine_errors.features(from_centre)
        distances = np.linalg.norm(features - expected, axis=1)
        self.max_difference = max(self.max_difference, float(distances.max()))
        worst = int(np.argmax(distances / bounds))
        if distances[worst] / bounds[worst] >= self.share:
            self.share, self.bound = float(distances[worst] / bounds[worst]), float(bounds[worst])
        flipped = logits.argmax(axis=1) != expected_logits.argmax(axis=1)
        top = np.sort(expected_logits, axis=1)
        is_tie = top[:, -1] - top[:, -2] <= 2 * np.abs(logits - expected_logits).max(axis=1)
        self.flips += int(flipped.sum())
        self.unexplained += int((flipped & ~is_tie).sum())
        labels = expected_logits.argmax(axis=1)
        radii, reference = (
            network.head.radii_lower(z, labels, NO_SLACK) for z in (features, expected)
        )
        difference = float(np.abs(radii - reference).max()) / manifest.lipschitz_upper
        self.radius_difference = max(self.radius_difference, difference)

    @property
    def is_ok(self) -> bool:
        """Whether all of it is as proven."""
        return self.share <= 1 and self.unexplained == 0


def engines(model: Path, folder: Path, ways: Sequence[Way]) -> Iterator[Comparison]:
    """Export and open whatever can run here; says what cannot."""
    for way in ways:
        path = folder / f"{way.options.accumulation}{SUFFIXES[way.options.kind]}"
        try:
            if not path.is_file():
                export_model(model, path, way.options)
            engine = read_engine(path)
            yield Comparison(way.name, engine, open_runtime(engine, way.runtime, way.device))
        except (EngineError, ExportError) as error:
            print_note(f"{way.name}: left out ({error})")


def batches(images: LabelledSources[Path], size: int) -> Iterator[NDArray[np.float32]]:
    """All images, in batches of at most `BATCH`, shape (batch, 3, n, n)."""
    for start in range(0, len(images), BATCH):
        sources = images.sources[start : start + BATCH]
        yield np.stack([network_input(source, size).pixels for source in sources])


def table(comparisons: list[Comparison]) -> Table:
    """A line an engine."""
    names = (">max difference", ">bound there", ">of bound", ">flips", ">radius, 1/255")
    shown = plain_table("engine", *names, "ok", "runs on")
    for one in comparisons:
        shown.add_row(
            one.name,
            f"{one.max_difference:.3g}",
            f"{one.bound:.3g}",
            f"{100 * one.share:.2g} %",
            str(one.flips),
            f"{one.radius_difference:.2g}",
            "yes" if one.is_ok else "NO",
            one.runtime.description,
        )
    return shown


def summary(compared: list[Comparison]) -> dict[str, object]:
    """What the last line says."""
    return {
        one.name: {
            "max_difference": one.max_difference,
            "bound": one.bound,
            "argmax_flips": one.flips,
            "ok": one.is_ok,
        }
        for one in compared
    }


def main() -> int:
    """Compare, print; the exit status."""
    model, data = (Path(argument) for argument in sys.argv[1:])
    images = scan_folder(data, "test")
    with tempfile.TemporaryDirectory() as folder:
        compared = list(engines(model, Path(folder), WAYS))
        for pixels in batches(images, compared[0].engine.network.image_size):
            for one in compared:
                one.add(pixels)
    print_line(f"{len(images)} images of {data.name}, all engines against float64")
    print_table(table(compared))
    print_json(summary(compared))
    return 0 if all(one.is_ok for one in compared) else 1


if __name__ == "__main__":
    sys.exit(main())
