"""Trains every recipe on a part of a dataset and prints what each reached: `make recipes`.

    python benchmarks/recipes.py FOLDER [--images 5000] [--epochs 5] [--test 1000]

FOLDER holds train/<class>/* and test/<class>/*. Every recipe sees the same images and as many
epochs; with --images 0 --epochs 0 all images, and the epochs of the recipe. Accuracy is that of
`lipdeploy evaluate` on test images, under the statement *network*.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lipdeploy.datasets import scan_folder
from lipdeploy.training.recipe import recipe_names


def lipdeploy(*arguments: str | Path) -> str:
    """What a command prints on standard output."""
    command = [sys.executable, "-m", "lipdeploy", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def part_of(folder: Path, images: int, target: Path) -> Path:
    """A folder of links to `images` of the training images, and to the test part."""
    found = scan_folder(folder.resolve(), "train")
    for path in found.spread(images or len(found)).sources:
        link = target / "train" / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (target / "test").symlink_to(folder.resolve() / "test")
    return target


def measured(recipe: str, folder: Path, out: Path, epochs: int, test: int) -> str:
    """The line of one recipe."""
    shorter = ["--epochs", str(epochs)] if epochs else []
    start = time.perf_counter()
    lipdeploy("train", folder, "--out", out, "--recipe", recipe, *shorter)
    seconds = time.perf_counter() - start
    limit = ["--limit", str(test)] if test else []
    command = ("evaluate", out / "model.pt", folder, "--guarantee", "network", "--json", *limit)
    result = json.loads(lipdeploy(*command))
    shares = [result["clean_accuracy"], *(entry["accuracy"] for entry in result["certified"][:3])]
    numbers = " / ".join(f"{100 * share:.2f}" for share in shares)
    return f"{recipe:12s} {numbers:32s} {seconds:6.0f} s, {result['images']} test images"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--test", type=int, default=1000)
    given = parser.parse_args(arguments)
    print(f"{'recipe':12s} {'clean / 36 / 72 / 108, %':32s} training")
    with tempfile.TemporaryDirectory() as kept:
        folder = part_of(given.folder, given.images, Path(kept) / given.folder.resolve().name)
        for recipe in recipe_names():
            out = Path(kept) / recipe
            print(measured(recipe, folder, out, given.epochs, given.test), flush=True)


if __name__ == "__main__":
    main()
