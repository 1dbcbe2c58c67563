"""A frozen circular convolution, frequency by frequency.

y = T^T D T x: T an orthonormal real Fourier basis of the grid (`lipdeploy.fourier`), rounded as it
is stored, and D one block for each independent frequency, real where the frequency is its own
mirror image, complex elsewhere. The forms differ in how T is stored and applied.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from lipdeploy.bounds import norm_upper, norms_upper, up
from lipdeploy.errors import ShapeError
from lipdeploy.fourier import RealFourier
from lipdeploy.operators import Array, Conversion, Convertible, Weights, check_shape, exact
from lipdeploy.rounding import Product, Rounding, Step, alongside, compose

COPIES = (1, 2)

Products = Literal["columns", "rows", "vectors"]
"""How an engine multiplies the blocks of a layer:

- columns: all blocks at once, from the left; images are the columns of the other side.
- rows: block by block, from the right; images are rows. Engines pack a matrix that stands there
  when they load it, and a stack of them never: the fastest for few images; each block costs the
  start of a product.
- vectors: all blocks at once, each image by itself, blocks cut into strips of output channels
  where there are enough of them: for one image and small blocks.
"""
PRODUCTS: tuple[Products, ...] = get_args(Products)

ROWS_LIMIT = 512
"""Most blocks that are multiplied one by one: those of a grid of 32 x 32."""


def sides(columns: NDArray[Any]) -> NDArray[Any]:
    """Synthesis of the four products of (real, imaginary) coefficients and blocks.

    From (rows, 2 count), columns (frequency, part), to (rows, 4 count), columns (frequency, part,
    side), the sides being products with the real and the imaginary part of a block R + i I:
    a coefficient a + i b becomes (R a - I b) + i (I a + R b).
    """
    real, imaginary = columns.reshape(len(columns), -1, 2).transpose(2, 0, 1)
    spread = [real, imaginary, imaginary, -real]
    return np.stack(spread, axis=2).reshape(len(columns), -1)


def embeddings(blocks: NDArray[Any]) -> NDArray[Any]:
    """Complex blocks (..., 2, m, n) as real matrices [[R, -I], [I, R]], (..., 2 m, 2 n)."""
    real, imaginary = blocks[..., 0, :, :], blocks[..., 1, :, :]
    upper = np.concatenate([real, -imaginary], axis=-1)
    return np.concatenate([upper, np.concatenate([imaginary, real], axis=-1)], axis=-2)


@dataclass(frozen=True, eq=False, kw_only=True)
class Spectral(Convertible):
    """What the spectral forms share.

    Attributes:
        real_blocks: shape (edge**2, c_out, c_in), applied from the left.
        complex_blocks: shape (count, 2, c_out, c_in), real and imaginary parts; frequencies in the
            order of `RealFourier.frequencies`; empty on grids of at most 2 x 2.
        copies: how often an engine holds each complex block: 1, as it is stored, or 2, as a real
            matrix of twice the size, which reads more and writes less.
        products: how an engine multiplies blocks, see `Products`.
    """

    form: ClassVar[str]
    real_blocks: Weights
    complex_blocks: Weights = field(default_factory=lambda: np.zeros((0, 0, 0, 0)))
    copies: int = 1
    products: Products = "columns"

    def _check_blocks(self) -> None:
        fourier, real = self.fourier, self.real_blocks.shape
        count = len(fourier.frequencies())
        if len(real) != 3 or real[0] != fourier.edge**2 or 0 in real:
            raise ShapeError(f"{self.form}: real blocks {real} on a grid of {self.grid}")
        shape = (count, 2, *real[1:]) if count else self.complex_blocks.shape
        if len(self.complex_blocks) != count or self.complex_blocks.shape != shape:
            raise ShapeError(
                f"{self.form}: complex blocks {self.complex_blocks.shape}, expected {shape}"
            )
        if self.copies not in COPIES:
            raise ShapeError(f"{self.form}: {self.copies} copies of a block")
        if self.products not in PRODUCTS:
            raise ShapeError(f"{self.form}: blocks in {self.products!r}, expected {PRODUCTS}")
        if self.products == "rows" and count > ROWS_LIMIT:
            raise ShapeError(f"{self.form}: {count} blocks one by one, at most {ROWS_LIMIT}")

    @property
    @abstractmethod
    def grid(self) -> int:
        """Side of the grid."""

    @abstractmethod
    def transforms(self) -> dict[str, Weights]:
        """The stored arrays of T by name."""

    @abstractmethod
    def analyse(self, x: Array) -> tuple[Array, Array]:
        """T x for x of shape (n, n, batch, c): (edge**2, batch, c) and (count, 2, batch, c)."""

    @abstractmethod
    def synthesise(self, mirror: Array, pairs: Array) -> Array:
        """T^T of what `analyse` returns."""

    @property
    @abstractmethod
    def transform_norm_upper(self) -> float:
        """Upper bound of ||T||."""

    @abstractmethod
    def analysis_step(self, rounding: Rounding) -> Step:
        """Rounding of T x."""

    @abstractmethod
    def synthesis_step(self, blocks: Step, rounding: Rounding) -> Step:
        """Rounding of the products of `blocks` and of T^T after them."""

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.real_blocks.shape[2])

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.real_blocks.shape[1])

    @property
    def has_rows(self) -> bool:
        """Whether an engine holds images as rows, (batch, channels), and not as columns."""
        return self.products != "columns"

    @property
    def fourier(self) -> RealFourier:
        """The frequencies of the grid."""
        return RealFourier(self.grid)

    def parameters(self) -> dict[str, Any]:
        """How blocks are multiplied; the weights say everything else."""
        copies: dict[str, Any] = {"copies": self.copies}
        return copies | ({"products": self.products} if self.has_rows else {})

    def weights(self) -> dict[str, Weights]:
        """Transforms and blocks."""
        return self.transforms() | self.blocks()

    def blocks(self) -> dict[str, Weights]:
        """Real and, where there are any, complex blocks by name."""
        named = {"real_blocks": self.real_blocks}
        return named | ({"complex_blocks": self.complex_blocks} if self.fourier.interior else {})

    def converted(self, large: Conversion, small: Conversion) -> Self:
        """With other blocks and transforms."""
        transforms: dict[str, Any] = {
            name: small(array) for name, array in self.transforms().items()
        }
        return replace(
            self,
            **transforms,
            real_blocks=large(self.real_blocks),
            complex_blocks=large(self.complex_blocks),
        )

    def scaled(self, factor: float) -> Self:
        """With the blocks times a number."""
        return replace(
            self,
            real_blocks=self.real_blocks * factor,
            complex_blocks=self.complex_blocks * factor,
        )

    def mv(self, x: Array) -> Array:
        """Apply to x of shape (n, n, batch, c_in)."""
        check_shape(self, x)
        mirror, pairs = self.analyse(x)
        mirror = mirror @ exact(self.real_blocks).transpose(0, 2, 1)
        blocks = exact(self.complex_blocks).transpose(0, 1, 3, 2)
        if not len(blocks):
            return self.synthesise(mirror, np.zeros((0, 2, x.shape[2], self.out_channels)))
        (a, b), (real, imaginary) = pairs.swapaxes(0, 1), blocks.swapaxes(0, 1)
        products = [a @ real - b @ imaginary, b @ real + a @ imaginary]
        return self.synthesise(mirror, np.stack(products, axis=1))

    @cached_property
    def norm_upper(self) -> float:
        """||T||^2 times the largest block norm, a complex block as a real one of twice the size."""
        return up(up(self.transform_norm_upper**2) * self.block_norm_upper)

    @cached_property
    def block_norm_upper(self) -> float:
        """Largest norm of a block."""
        norms = [*norms_upper(self.real_blocks)]
        if len(self.complex_blocks):
            norms += [*norms_upper(embeddings(exact(self.complex_blocks)))]
        return float(max(norms))

    def step(self, rounding: Rounding) -> Step:
        """T, the blocks, T^T, each with the stages of its form.

        With one copy of each complex block the products R a, I a, R b, I b of coefficients a + i b
        are taken ([R; I] applied to each part) and T^T adds them with their signs (`sides`): errors
        of the products go through a matrix of norm sqrt(2) ||T||, exact values stay within the norm
        of the operator. With two copies the block is one matrix. float64 (`mv`) makes the same
        products and additions, but that it adds the four products of a coefficient before T^T:
        each of their terms then meets one rounding more in the blocks and half as many in T^T.
        """
        blocks = alongside([rounding.product(product) for product in self._products])
        steps = [self.analysis_step(rounding), self.synthesis_step(blocks, rounding)]
        return replace(compose(steps), norm_upper=self.norm_upper)

    @cached_property
    def _products(self) -> list[Product]:
        """Real blocks, and complex ones as the engine holds them; at most two nodes, for halves."""
        count, c_out = len(self.complex_blocks), self.out_channels
        real = self.real_blocks
        products = [Product(real.transpose(0, 2, 1), len(real) * c_out, nodes=2)]
        if count:
            matrices = self.complex_blocks.reshape(count, 2 * c_out, self.in_channels)
            if self.copies == 2:
                matrices = embeddings(self.complex_blocks)
            size = (4 // self.copies) * count * c_out
            products.append(Product(matrices.transpose(0, 2, 1), size, nodes=2))
        return products

    def _spread(self, columns: Weights) -> Weights:
        """Columns (frequency, part) of T^T as they meet the products of blocks."""
        return columns if self.copies == 2 else sides(columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class SpectralConv(Spectral):
    """Transforms one axis after the other; grids of at least 3 x 3.

    Attributes:
        basis: `RealFourier.paired_basis` as stored, shape (n, n).
        phases: `RealFourier.phases` as stored, shape (2 n, 2 n).
    """

    form: ClassVar[str] = "spectral"
    basis: Weights
    phases: Weights

    def __post_init__(self) -> None:
        n = len(self.basis)
        if n < 3 or self.basis.shape != (n, n) or self.phases.shape != (2 * n, 2 * n):
            raise ShapeError(f"spectral: basis {self.basis.shape}, phases {self.phases.shape}")
        self._check_blocks()

    @property
    def grid(self) -> int:
        """Side of the grid."""
        return int(self.basis.shape[0])

    def transforms(self) -> dict[str, Weights]:
        """Basis of one axis, phases of the other."""
        return {"basis": self.basis, "phases": self.phases}

    def analyse(self, x: Array) -> tuple[Array, Array]:
        """T x: rows, then columns of the edge rows (real) and of the others (complex)."""
        n, e, shape = self.grid, self.fourier.edge, x.shape[2:]
        basis = exact(self.basis)
        rows = basis @ x.reshape(n, -1)
        inner = exact(self.phases) @ rows[e:].reshape(self.fourier.interior, 2 * n, -1)
        edge = (basis @ rows[:e].reshape(e, n, -1)).reshape(e, n, *shape)
        pairs = [inner.reshape(-1, 2, *shape), edge[:, e:].reshape(-1, 2, *shape)]
        return edge[:, :e].reshape(e * e, *shape), np.concatenate(pairs)

    def synthesise(self, mirror: Array, pairs: Array) -> Array:
        """T^T, stage by stage the transpose of `analyse`."""
        n, e, h, shape = self.grid, self.fourier.edge, self.fourier.interior, mirror.shape[1:]
        edge_rows, inner_rows = (exact(part).T for part in self._cut_basis)
        inner = exact(self.phases).T @ pairs[: h * n].reshape(h, 2 * n, -1)
        edge = inner_rows @ pairs[h * n :].reshape(e, 2 * h, -1)
        edge = edge + edge_rows @ mirror.reshape(e, e, -1)
        y = inner_rows @ inner.reshape(2 * h, -1) + edge_rows @ edge.reshape(e, -1)
        return y.reshape(n, n, *shape)

    @cached_property
    def transform_norm_upper(self) -> float:
        """||basis|| times the larger of ||basis|| and ||phases||: the second stage has both."""
        return up(norm_upper(self.basis) * self._column_norm_upper)

    @cached_property
    def _column_norm_upper(self) -> float:
        return max(norm_upper(self.basis), norm_upper(self.phases))

    @cached_property
    def _cut_basis(self) -> tuple[Weights, Weights]:
        e = self.fourier.edge
        return self.basis[:e], self.basis[e:]

    def analysis_step(self, rounding: Rounding) -> Step:
        """Edge and inner rows are two nodes each time."""
        n, e, h, c = self.grid, self.fourier.edge, self.fourier.interior, self.in_channels
        rows = Product(self.basis.T, n * n * c, nodes=2)
        columns = [Product(self.phases.T, 2 * h * n * c), Product(self.basis.T, e * n * c, nodes=2)]
        return compose(
            [rounding.product(rows), alongside([rounding.product(part) for part in columns])]
        )

    def synthesis_step(self, blocks: Step, rounding: Rounding) -> Step:
        """Columns, then rows; even and odd columns are two products each."""
        n, e, h, c = self.grid, self.fourier.edge, self.fourier.interior, self.out_channels
        edge, inner = self._cut_basis
        phases = Product(self._spread(self.phases.T).T, 2 * h * n * c, nodes=2)
        crossed = [
            Product(self._spread(inner.T).T, e * n * c, nodes=2),
            Product(edge, e * n * c, nodes=2),
        ]
        columns = alongside([rounding.product(phases), rounding.joined(crossed)])
        norm = up(self._column_norm_upper * self.block_norm_upper)
        first = replace(compose([blocks, columns]), norm_upper=norm)
        rows = [Product(inner, n * n * c), Product(edge, n * n * c)]
        return compose([first, rounding.joined(rows)])


@dataclass(frozen=True, eq=False, kw_only=True)
class FusedSpectralConv(Spectral):
    """One transform of the whole grid: fewer and larger products, for small grids.

    Attributes:
        plane: `RealFourier.plane_basis` as stored, shape (n * n, n * n).
    """

    form: ClassVar[str] = "fused"
    plane: Weights

    def __post_init__(self) -> None:
        size = self.grid**2
        if not size or self.plane.shape != (size, size):
            raise ShapeError(f"fused: transform {self.plane.shape}")
        self._check_blocks()

    @property
    def grid(self) -> int:
        """Side of the grid."""
        return math.isqrt(len(self.plane))

    def transforms(self) -> dict[str, Weights]:
        """The one transform."""
        return {"plane": self.plane}

    def analyse(self, x: Array) -> tuple[Array, Array]:
        """T x at once."""
        shape, mirrors = x.shape[2:], len(self.real_blocks)
        y = exact(self.plane) @ x.reshape(len(self.plane), -1)
        return y[:mirrors].reshape(-1, *shape), y[mirrors:].reshape(-1, 2, *shape)

    def synthesise(self, mirror: Array, pairs: Array) -> Array:
        """T^T at once."""
        n, size, plane = self.grid, math.prod(mirror.shape[1:]), exact(self.plane)
        y: Array = plane[: len(mirror)].T @ mirror.reshape(-1, size)
        if len(pairs):
            y = plane[len(mirror) :].T @ pairs.reshape(-1, size) + y
        return y.reshape(n, n, *mirror.shape[1:])

    @cached_property
    def transform_norm_upper(self) -> float:
        """The norm of the one matrix."""
        return norm_upper(self.plane)

    def analysis_step(self, rounding: Rounding) -> Step:
        """Real and complex frequencies are two nodes."""
        return rounding.product(Product(self.plane.T, len(self.plane) * self.in_channels, nodes=2))

    def synthesis_step(self, blocks: Step, rounding: Rounding) -> Step:
        """The products of complex and of real blocks, joined."""
        mirrors, size = len(self.real_blocks), len(self.plane) * self.out_channels
        parts = [self._spread(self.plane[mirrors:].T).T, self.plane[:mirrors]]
        joined = rounding.joined([Product(part, size) for part in parts if len(part)])
        norm = up(self.transform_norm_upper * self.block_norm_upper)
        return replace(compose([blocks, joined]), norm_upper=norm)
