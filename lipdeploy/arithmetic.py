"""Models of floating-point arithmetic: how precisely a machine adds, multiplies and stores."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lipdeploy.bounds import UNIT_ROUNDOFF
from lipdeploy.directed import MARGIN
from lipdeploy.errors import BoundError


@dataclass(frozen=True)
class Arithmetic:
    """How precisely a machine computes.

    Attributes:
        name: as in the manifest.
        unit_roundoff: u of every addition and multiplication.
        operand_bits: significand bits of the operands of a product; longer ones are cut.
        operand_roundoff: largest relative change of an operand by that; 0 where there is none.
        storage_roundoff: largest relative change of a result when it is stored.
        smallest_normal: anything smaller may become 0, as an operand or as a result that is stored.
        largest: largest finite number of a result.
        largest_sum: largest finite number of a partial sum.
        smallest_sum: any product or partial sum that is smaller may become 0.
        has_program: whether the statement *program* is offered in it. Not on tensor cores, where
            libraries may sum in fewer bits than the model says, and do not tell.
    """

    name: str
    unit_roundoff: float
    operand_bits: int
    smallest_normal: float
    largest: float
    operand_roundoff: float = 0.0
    storage_roundoff: float = 0.0
    has_program: bool = True
    largest_sum: float = 2.0**127
    smallest_sum: float = 2.0**-126

    @property
    def input_roundoff(self) -> float:
        """Largest relative change of x as it enters a product x @ M.

        None where results are stored in the bits of operands: x is such a result, or was stored
        like one (`lipdeploy.engine_error` counts that of the pixels). An engine that keeps a
        result longer in more bits rounds it where it becomes an operand, once, too.
        """
        return 0.0 if self.storage_roundoff > 0 else self.operand_roundoff

    def gamma(self, n: int) -> float:
        """Upper bound of n u / (1 - n u)."""
        nu = n * self.unit_roundoff
        if nu >= 0.01:
            raise BoundError(f"sums of length {n} are too long for {self.name}")
        return nu / (1 - nu) * MARGIN

    def nearest(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Weights rounded to operands of this arithmetic, stored as before.

        Raises:
            BoundError: if one is larger than any operand.
        """
        mantissas, exponents = np.frexp(weights.astype(np.float64))
        rounded = np.ldexp(
            np.rint(np.ldexp(mantissas, self.operand_bits)), exponents - self.operand_bits
        )
        if np.any(np.abs(rounded) > self.largest):
            raise BoundError(f"a weight is too large for {self.name}; use --precision float32")
        rounded[np.abs(rounded) < self.smallest_normal] = 0
        with np.errstate(over="ignore"):
            result: NDArray[Any] = rounded.astype(weights.dtype)
        if not np.all(np.isfinite(result)):
            raise BoundError(f"a weight is too large for {self.name}; use --weights float32")
        return result

    def is_flushed(self, weights: NDArray[Any]) -> bool:
        """Whether engines may take one of these weights for 0."""
        values = np.abs(np.asarray(weights, dtype=np.float64))
        return bool(np.any((values != 0) & (values < self.smallest_normal)))

    def holds(self, weights: NDArray[Any]) -> bool:
        """Whether operands of this arithmetic can be exactly these weights."""
        if weights.dtype == np.float16 and self.operand_bits >= 11 and self.largest > 65504:
            return True  # its smallest number, 2^-24, is a normal one in all of these
        values = np.asarray(weights, dtype=np.float64)
        if np.any((values != 0) & (np.abs(values) < self.smallest_normal)):
            return False
        scaled = np.ldexp(np.frexp(values)[0], self.operand_bits)
        return bool(np.all(scaled == np.rint(scaled)))


FLOAT64 = Arithmetic(
    "float64",
    UNIT_ROUNDOFF,
    53,
    2.0**-1022,
    2.0**1023,
    largest_sum=2.0**1023,
    smallest_sum=2.0**-1022,
)
FLOAT32 = Arithmetic("float32", 2.0**-24, 24, 2.0**-126, 2.0**127)
# Tensor cores are not IEEE: operands are truncated (TF32) and sums keep 23 to 25 bits.
TF32 = Arithmetic(
    "tf32", 2.0**-22, 11, 2.0**-126, 2.0**127, operand_roundoff=2.0**-10, has_program=False
)
FLOAT16 = Arithmetic(
    "float16",
    2.0**-22,
    11,
    2.0**-14,
    65504.0,
    operand_roundoff=2.0**-11,
    storage_roundoff=2.0**-11,
    has_program=False,
)
BFLOAT16 = Arithmetic(
    "bfloat16",
    2.0**-22,
    8,
    2.0**-126,
    2.0**127,
    operand_roundoff=2.0**-8,
    storage_roundoff=2.0**-8,
    has_program=False,
)
ARITHMETICS = {a.name: a for a in (FLOAT64, FLOAT32, TF32, FLOAT16, BFLOAT16)}
"""float16 and bfloat16 are those of tensor cores: sums in 32 bits, results stored in 16."""

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
"""Those in which engines compute."""


def stored(weights: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Weights rounded to `dtype`; subnormal numbers of float32, which engines may flush, are 0.

    The subnormal numbers of float16 are normal ones where engines compute.
    """
    rounded = weights.astype(dtype)
    if rounded.dtype == np.float32:
        rounded[np.abs(rounded) < FLOAT32.smallest_normal] = 0
    return rounded
