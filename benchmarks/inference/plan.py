"""Which networks the benchmark measures: a centre, and one factor at a time around it."""

import itertools

from inference.cases import Case
from inference.engines import DEFAULT, PLANNED, VARIANTS
from inference.opponents import DENSE, SERIES_6, SERIES_15
from inference.peers import PEERS
from inference.plain import STRIDED, strided_cnn
from lipdeploy.training.architecture import Architecture


def shape(width: int = 32, depth: int = 5, image_size: int = 32) -> Architecture:
    """The centre, or another network that differs in what is given."""
    return Architecture(image_size, 10, width=width, depth=depth)


CENTRE = Case(
    "centre",
    shape(),
    batches=(1, 8, 64, 256),
    variants=tuple(VARIANTS),
    series=(SERIES_15, SERIES_6, DENSE),
    seconds=30,
)

CASES = (
    CENTRE,
    Case("width", shape(width=16), (64,)),
    Case("width", shape(width=64), (64,), build_seconds=400),
    # PyTorch takes half a minute for 64 images.
    Case("width", shape(width=128), (8,), build_seconds=2000),
    Case("depth", shape(depth=15), (64,)),
    Case("image size", shape(image_size=64), (64,)),
    Case("image size", shape(image_size=224), (64,)),
    Case("224 px, narrow", shape(image_size=224, width=8), (64,)),
    Case("padding", Architecture(32, 10, width=32, padding="zero"), (64,), build_seconds=900),
    Case("head", Architecture(32, 10, width=32, head="mlp"), (64,)),
)
"""Of `make bench`; the centre is first, what the others take is predicted from it."""

QUICK = Case("centre", shape(), (1, 8, 64), (DEFAULT, PLANNED), seconds=15)
"""Of `make bench-quick`: the default engine and the one that all factors compare."""

WITH_PEERS = Case("centre", shape(), (1, 8, 64), others={STRIDED: strided_cnn, **PEERS})
"""Of `make bench-peers`."""


def build_work(architecture: Architecture) -> float:
    """What building an engine grows with: c^3 for each of n^2 frequencies, over all layers.

    Exponentials and proofs take a fixed number of products of matrices at each frequency.
    """
    grids, total = architecture.grids(), 0.0
    for index, (grid, half) in enumerate(itertools.pairwise(grids)):
        channels = architecture.width * 2**index
        last = index == len(grids) - 2
        total += (architecture.depth // 5 - 1) * (1 if last else grid**2) * channels**3
        total += (1 if last else half**2) * (4 * channels) ** 3
    return total


def predicted_seconds(case: Case, centre_seconds: float) -> float:
    """What building an engine of a case will take, where that of the centre took so long."""
    return centre_seconds * build_work(case.architecture) / build_work(CENTRE.architecture)
