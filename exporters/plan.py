"""Which form each layer gets: the fastest for a target, as far as the certificate allows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lipdeploy.errors import FreezeError
from lipdeploy.rounding import STANDARD, Rounding
from lipdeploy.spectral import COPIES, ROWS_LIMIT, Products

FormChoice = Literal["auto", "spectral", "fused", "tiled", "dense", "taylor"]
FORM_CHOICES: tuple[FormChoice, ...] = get_args(FormChoice)

DENSE_LIMIT = 2048
"""Largest side of a dense matrix that is chosen without being asked for."""

FUSED_LIMIT = 16
"""Largest grid whose transform is made one matrix without being asked for."""

MAX_DENSE_BYTES = 2 << 30

TILE = 32
"""Side of a tile."""

SPECTRAL_LIMIT = 1 << 24
"""Most numbers of the blocks of a layer larger than a tile that is not cut into tiles."""


@dataclass(frozen=True)
class LayerShape:
    """What a choice depends on.

    Attributes:
        grid: side of the grid.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel.
        padding: "circular" or "zero".
        cells: whether the input comes from space-to-depth.
        cut: whether space-to-depth follows.
        is_local: whether few taps are all of a circular layer, or nearly all.
    """

    grid: int
    in_channels: int
    out_channels: int
    kernel_size: int
    padding: str
    cells: bool = False
    cut: bool = False
    is_local: bool = True

    @property
    def dense_side(self) -> int:
        """Rows of the skew operator as one matrix."""
        return self.grid**2 * max(self.in_channels, self.out_channels)


@dataclass(frozen=True)
class Choice:
    """How one layer is evaluated.

    Attributes:
        form: of its operator.
        copies: of each complex block in the engine, where the form is a spectral one.
        products: how the engine multiplies blocks, see `lipdeploy.spectral.Products`.
    """

    form: str
    copies: int = 1
    products: Products = "columns"

    @property
    def multiplication(self) -> dict[str, Any]:
        """How blocks are multiplied, as arguments of a spectral operator."""
        return {"copies": self.copies, "products": self.products}

    def __str__(self) -> str:
        how = [f"x{self.copies}"] * (self.copies > 1)
        return " ".join([self.form, *how, *[self.products] * (self.products != "columns")])


@dataclass(frozen=True)
class Target:
    """What a plan is made for.

    Attributes:
        batch: images at a time.
        rounding: what the certificate assumes; decides on how sums are cut.
        packs: whether the engine packs a matrix on the right when it loads it, as CPU libraries do;
            on a GPU one large product is faster than many.
    """

    batch: int = 64
    rounding: Rounding = STANDARD
    packs: bool = True

    def takes(self, choice: Choice) -> bool:
        """Whether a choice makes sense for it at all."""
        return self.packs or choice.products == "columns"

    def __str__(self) -> str:
        return f"batch {self.batch}, sums of at most {self.rounding.block or 'any'} terms"


Cost = Callable[[LayerShape, Choice, Target], float]
"""Seconds that a layer takes for a batch."""


def make_plan(
    shapes: Sequence[LayerShape], form: FormChoice, target: Target, cost: Cost
) -> tuple[Choice, ...]:
    """The cheapest candidate of each layer.

    Raises:
        FreezeError: if the form asked for does not exist for a layer, or is too large.
    """
    chosen: dict[LayerShape, Choice] = {}
    for shape in dict.fromkeys(shapes):
        found = filter(target.takes, candidates(shape, form))
        chosen[shape] = min(found, key=lambda choice: cost(shape, choice, target))
    return tuple(chosen[shape] for shape in shapes)


def candidates(shape: LayerShape, form: FormChoice = "auto") -> tuple[Choice, ...]:
    """The ways to evaluate a layer.

    A layer without spatial extent is one matrix, whatever was asked for. A circular one is cheapest
    and exact frequency by frequency, but their number grows with the grid: a large grid is cut
    into tiles, its kernel trimmed. A zero-padded one is exact as a matrix, which a large grid
    makes too large; there the series stays, with a proven remainder.

    Raises:
        FreezeError: if the form asked for does not exist for the layer, or is too large.
    """
    is_circular = shape.padding == "circular"
    if shape.kernel_size == 1 or (is_circular and shape.grid == 1):
        return (Choice("pointwise"),)
    if form == "auto":
        is_small = shape.dense_side <= DENSE_LIMIT
        if not is_circular:
            return (Choice("dense" if is_small else "taylor"),)
        return tuple(_circular(shape)) + ((Choice("dense"),) if is_small else ())
    _check(shape, form, is_circular=is_circular)
    if form == "spectral" and shape.grid < 3:
        return tuple(_variants("fused", shape))
    if form == "tiled" and (shape.grid < TILE or not shape.is_local):
        return tuple(_circular(shape))
    is_spectral = form in ("spectral", "fused")
    return tuple(_variants(form, shape)) if is_spectral else (Choice(form),)


def _circular(shape: LayerShape) -> Iterator[Choice]:
    """Forms that work frequency by frequency and are not too large."""
    blocks = shape.grid**2 * shape.in_channels * shape.out_channels
    can_tile = shape.grid > TILE and shape.is_local
    if shape.grid >= 3 and (not can_tile or blocks <= SPECTRAL_LIMIT):
        yield from _variants("spectral", shape)
    if shape.grid <= FUSED_LIMIT:
        yield from _variants("fused", shape)
    if can_tile:
        yield Choice("tiled")


def _variants(form: str, shape: LayerShape) -> Iterator[Choice]:
    """The ways to multiply the blocks of a spectral form."""
    for copies in COPIES:
        yield Choice(form, copies)
        yield Choice(form, copies, "vectors")
    if shape.grid**2 <= 2 * ROWS_LIMIT:
        yield Choice(form, products="rows")


def _check(shape: LayerShape, form: FormChoice, *, is_circular: bool) -> None:
    if form in ("spectral", "fused", "tiled") and not is_circular:
        raise FreezeError(
            f"a zero-padded layer is no convolution and has no {form} form; use --form dense, "
            "taylor or auto, or train with --padding circular"
        )
    if form == "taylor" and is_circular:
        raise FreezeError("the taylor form is for zero padding; use --form spectral or auto")
    side = {"dense": shape.dense_side, "fused": shape.grid**2}.get(form, 0)
    if 8 * side**2 > MAX_DENSE_BYTES:
        raise FreezeError(
            f"a dense {side} x {side} float64 operator needs "
            f"{8 * side**2 / 2**30:.1f} GiB, limit {MAX_DENSE_BYTES / 2**30:.1f} GiB; use "
            "--form auto"
        )
