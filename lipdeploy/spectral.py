"""A frozen circular convolution, frequency by frequency."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike

from lipdeploy.bounds import norm_upper, norms_upper, up
from lipdeploy.errors import ShapeError
from lipdeploy.fourier import RealFourier
from lipdeploy.operators import Array, Weights, check_shape, exact
from lipdeploy.rounding import MARGIN, Product, Rounding, Step, compose, stored

SQRT2_UPPER = up(2**0.5)


@dataclass(frozen=True, eq=False)
class SpectralConv:
    """A circular convolution, one block for each independent frequency (see `lipdeploy.fourier`).

    Attributes:
        basis: the real Fourier basis as stored, shape (n, n).
        real_blocks: shape (edge**2, c_in, c_out), applied from the right.
        complex_blocks: shape (count, c_in, 2 * c_out), real and imaginary part side by side, the
            factor that the two butterflies owe included; empty on grids of at most 2 x 2.
    """

    form: ClassVar[str] = "spectral"
    basis: Weights
    real_blocks: Weights
    complex_blocks: Weights = field(default_factory=lambda: np.zeros((0, 0, 0)))

    def __post_init__(self) -> None:
        n, fourier = len(self.basis), self.fourier
        real, count = self.real_blocks.shape, len(fourier.complex_frequencies())
        complex_shape = (count, real[1], 2 * real[2]) if count else self.complex_blocks.shape
        if self.basis.shape != (n, n) or real[0] != fourier.edge**2 or 0 in real:
            raise ShapeError(f"spectral: basis {self.basis.shape} and real blocks {real}")
        if len(self.complex_blocks) != count or self.complex_blocks.shape != complex_shape:
            raise ShapeError(
                f"spectral: complex blocks {self.complex_blocks.shape}, expected {complex_shape}"
            )

    @property
    def grid(self) -> int:
        """Side of the grid."""
        return int(self.basis.shape[0])

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.real_blocks.shape[1])

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.real_blocks.shape[2])

    @property
    def fourier(self) -> RealFourier:
        """The frequencies of the grid."""
        return RealFourier(self.grid)

    def parameters(self) -> dict[str, Any]:
        """None: the weights say everything."""
        return {}

    def weights(self) -> dict[str, Weights]:
        """Basis and blocks."""
        named = {"basis": self.basis, "real_blocks": self.real_blocks}
        return named | ({"complex_blocks": self.complex_blocks} if self.fourier.interior else {})

    def stored_as(self, dtype: DTypeLike) -> Self:
        """With the blocks rounded to `dtype`; the small basis keeps at least float32."""
        return replace(
            self,
            basis=stored(self.basis, np.promote_types(dtype, np.float32)),
            real_blocks=stored(self.real_blocks, dtype),
            complex_blocks=stored(self.complex_blocks, dtype),
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
        n, basis = self.grid, exact(self.basis)
        rows = (basis @ x.reshape(n, -1)).reshape(x.shape)
        coefficients = (basis @ rows.reshape(n, n, -1)).reshape(x.shape)
        y = self._join(*self._multiply(*self._split(coefficients)))
        columns = (basis.T @ y.reshape(n, n, -1)).reshape(y.shape)
        result: Array = (basis.T @ columns.reshape(n, -1)).reshape(y.shape)
        return result

    def _split(self, x: Array) -> tuple[Array, Array, Array]:
        e, c, s = self.fourier.parts
        real = [x[e, c], x[c, e], x[c, c] - x[s, s], x[c, c] + x[s, s]]
        imaginary = [x[e, s], x[s, e], x[c, s] + x[s, c], x[s, c] - x[c, s]]
        return _flatten(real), _flatten(imaginary), _flatten([x[e, e]])

    def _multiply(self, real: Array, imaginary: Array, mirror: Array) -> tuple[Array, ...]:
        if not self.fourier.interior:
            empty = np.zeros((0, mirror.shape[1], self.out_channels))
            return empty, empty, mirror @ exact(self.real_blocks)
        blocks, c = exact(self.complex_blocks), self.out_channels
        from_real, from_imaginary = real @ blocks, imaginary @ blocks
        y_real = from_real[..., :c] - from_imaginary[..., c:]
        y_imaginary = from_real[..., c:] + from_imaginary[..., :c]
        return y_real, y_imaginary, mirror @ exact(self.real_blocks)

    def _join(self, real: Array, imaginary: Array, mirror: Array) -> Array:
        e, h = self.fourier.edge, self.fourier.interior
        ends = np.cumsum([e * h, h * e, h * h])
        ec, ce, plus, minus = np.split(real, ends)
        es, se, plus_i, minus_i = np.split(imaginary, ends)
        cells = [
            [(mirror, e, e), (ec, e, h), (es, e, h)],
            [(ce, h, e), (plus + minus, h, h), (plus_i - minus_i, h, h)],
            [(se, h, e), (plus_i + minus_i, h, h), (minus - plus, h, h)],
        ]
        rows = [[v.reshape(a, b, *v.shape[1:]) for v, a, b in row] for row in cells]
        joined: Array = np.concatenate([np.concatenate(row, axis=1) for row in rows])
        return joined

    @cached_property
    def norm_upper(self) -> float:
        """||basis||^4 times the largest block norm.

        With F the basis along both axes and U the butterfly, the operator is F^T U^T D U F, D the
        blocks. U maps disjoint groups of coefficients to disjoint groups of frequencies; it is
        isometric but where both frequencies are interior, where it is sqrt(2) times an isometry.
        So the norm is at most ||F||^2 max_f ||D_f|| s_f with s_f = 2 there and 1 elsewhere, that
        is, 1 / block_scale. A complex block acts on (real, imaginary) as a real matrix of twice
        the size.
        """
        basis = norm_upper(self.basis)
        largest = max(self._products[0].norm_upper, self._block_norm_upper)
        squared = up(basis * basis)
        return up(up(squared * squared) * largest)

    @cached_property
    def _block_norm_upper(self) -> float:
        """Largest norm of a complex block, free of the butterflies' factor; 0 without any."""
        if not len(self.complex_blocks):
            return 0.0
        scaled = norms_upper(self._real_embedding()) / self.fourier.block_scale()
        return float(np.max(scaled))

    def _real_embedding(self) -> Array:
        """Complex blocks as real matrices, shape (count, 2 c_in, 2 c_out)."""
        blocks, c = exact(self.complex_blocks), self.out_channels
        real, imaginary = blocks[..., :c], blocks[..., c:]
        upper, lower = blocks, np.concatenate([-imaginary, real], axis=2)
        embedding: Array = np.concatenate([upper, lower], axis=1)
        return embedding

    def step(self, rounding: Rounding) -> Step:
        """Seven steps: two transforms, butterfly, blocks, butterfly, two transforms.

        Coefficients of which both frequencies are interior are measured in a norm that is smaller
        by sqrt(2) between the first butterfly and the blocks, and larger by sqrt(2) between the
        blocks and the second: so both butterflies keep the norm, and relative errors stay relative.
        A complex block is one product with [R | I] for the real and one for the imaginary part,
        each with error a ||part||, whose results are added or subtracted in pairs: an error of at
        most a (||real|| + ||imaginary||) <= sqrt(2) a ||both||, and one rounding more.
        """
        n, c_in, c_out = self.grid, self.in_channels, self.out_channels
        real, stacked = self._products
        there = [rounding.product(Product(self.basis.T, n * n * c_in))] * 2
        back = [rounding.product(Product(self.basis, n * n * c_out))] * 2
        butterflies = [rounding.butterfly(n * n * c) for c in (c_in, c_out)]
        blocks = rounding.product(real)
        if stacked is not None:
            parts, roundoff = rounding.product(stacked), rounding.entry_roundoff
            error = SQRT2_UPPER * parts.rounding_upper * (1 + roundoff)
            blocks = Step(
                max(self._block_norm_upper, blocks.norm_upper),
                max((error + self._block_norm_upper * roundoff) * MARGIN, blocks.rounding_upper),
                2 * parts.underflow + blocks.underflow + rounding.flushed(n * n * c_out),
                2 * max(parts.growth, blocks.growth),
            )
        steps = [*there, butterflies[0], blocks, butterflies[1], *back]
        return replace(compose(steps), norm_upper=self.norm_upper)

    @cached_property
    def _products(self) -> tuple[Product, Product | None]:
        """Real blocks, and [R | I] of the complex ones, free of the butterflies' factor."""
        size = self.grid**2 * self.out_channels
        real = Product(self.real_blocks, len(self.real_blocks) * self.out_channels)
        if not len(self.complex_blocks):
            return real, None
        factors = self.fourier.block_scale().astype(self.complex_blocks.dtype)
        return real, Product(self.complex_blocks / factors[:, None, None], 2 * size)


def _flatten(parts: list[Array]) -> Array:
    return np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])
