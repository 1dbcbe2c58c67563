"""Exponentials of stacks of skew matrices, by far fewer products than a general one takes.

For skew-Hermitian A with ||A||_2 <= r the Jacobi-Anger expansion (Abramowitz & Stegun 1964, 9.1.44)
reads, J_k being Bessel functions and t_k the Chebyshev polynomials with all signs made positive
(t_0 = 1, t_1 = x, t_(k+1) = 2 x t_k + t_(k-1)),

    exp(A) = J_0(r) + 2 sum_(k>0) J_k(r) t_k(A / r),

where ||t_k(A / r)|| <= 1, A being normal with eigenvalues i r cos(phi), and |J_k(r)| <= (r/2)^k/k!.
So what lies behind degree n has norm at most

    2 sum_(k>n) (r/2)^k / k! <= 2 (r/2)^(n+1) / (n+1)! / (1 - r / (2 n + 4)),

2^n times less than in Taylor's series. Even and odd powers are two polynomials in A^2, evaluated
together as Paterson & Stockmeyer (1973) do: exp(A) = C(A^2) + A S(A^2), a cosine and a sine.

The powers of A^2 are symmetric where A is real, so half of each product is enough. Else all factors
are Hermitian matrices that commute, and P + i Q, with P symmetric and Q skew, is kept as the real
matrix P + Q, which determines both: two real products instead of four.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdeploy.errors import FreezeError

Array = NDArray[np.float64]

POWERS = 4
"""Powers of A^2 that are computed; the last one also bounds the norm of A."""

REACHES = {2: 1.875, 3: 4.0}
"""Norms up to which that many groups of `POWERS` powers of A^2 leave a remainder below 2^-53."""

LARGEST = 1e9
"""Norm beyond which fewer than seven digits of the angles are left."""

CHUNK = 1 << 17
"""Entries of a stack that are worked on at a time, so that the powers stay in the cache."""

PANEL = 128
"""Rows of a symmetric product that are computed at a time."""


def skew_exponential(blocks: NDArray[Any]) -> NDArray[Any]:
    """Exp of each matrix of a stack, as exact as float64 products are.

    Args:
        blocks: real skew-symmetric or complex skew-Hermitian, shape (..., c, c).

    Returns:
        Orthogonal or unitary matrices, same shape and type.

    Raises:
        FreezeError: if an entry is not finite, or so large that angles lose their digits.
    """
    side = blocks.shape[-1]
    largest = np.abs(blocks).max(initial=0.0)
    if not side * largest <= LARGEST:
        raise FreezeError(
            f"a skew kernel has an entry of {largest:.3g}, expected at most {LARGEST / side:.3g}: "
            "its exponential is not accurate in float64; train again"
        )
    stack = torch.from_numpy(blocks.reshape(-1, side, side))
    step = max(1, CHUNK // side**2)
    chunks = [stack[start : start + step] for start in range(0, len(stack), step)]
    parts = _on_all_cores(_of_hermitian if stack.is_complex() else _of_real, chunks)
    rotations: NDArray[Any] = torch.cat([stack[:0], *parts]).numpy().reshape(blocks.shape)
    return rotations


def _on_all_cores(function: Callable[[Tensor], Tensor], chunks: list[Tensor]) -> list[Tensor]:
    """The function of each chunk, each on a core of its own where there are enough.

    Threads that share a product wait for each other in a busy loop; beside other work on the
    machine small products then take many times as long.
    """
    threads = torch.get_num_threads()
    if len(chunks) < threads:
        return [function(chunk) for chunk in chunks]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, chunks))
    finally:
        torch.set_num_threads(threads)


def _of_real(skew: Tensor) -> Tensor:
    cosine, sine, squarings = _cosine_and_sine(_symmetric_product(skew, skew), _symmetric_product)
    return _squared(cosine + skew @ sine, squarings)


def _of_hermitian(skew: Tensor) -> Tensor:
    hermitian = skew.imag - skew.real  # -i A = P + i Q with P = Im A, Q = -Re A
    square = -_hermitian_product(hermitian, hermitian)
    cosine, sine, squarings = _cosine_and_sine(square, _hermitian_product)
    sine = _hermitian_product(hermitian, sine)
    result = torch.complex(_even(cosine) - _odd(sine), _odd(cosine) + _even(sine))
    return _squared(result, squarings)


def _squared(rotation: Tensor, times: int) -> Tensor:
    for _ in range(times):
        rotation = rotation @ rotation
    return rotation


def _cosine_and_sine(
    square: Tensor, product: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, int]:
    """C and S, polynomials in A^2, with exp(A / 2^s) = C + A S, and s."""
    powers = square.new_empty(POWERS, *square.shape)
    powers[0] = square
    for k in range(1, POWERS):
        powers[k] = product(powers[(k - 1) // 2], powers[k // 2])
    groups, squarings = _plan(powers[-1])
    # Scaling coefficients instead of A keeps the powers, from which the scale was found.
    halves = np.ldexp(1.0, -2 * squarings * np.arange(POWERS * groups + 1))
    even, odd = torch.from_numpy(_coefficients(groups) * halves)
    sine = odd * 2.0**-squarings
    return _polynomial(even, powers, product), _polynomial(sine, powers, product), squarings


def _plan(last_power: Tensor) -> tuple[int, int]:
    """Groups of powers, and squarings, for ||A||^8 = ||(A^2)^4|| <= ||(A^2)^4||_F."""
    norm = float(torch.linalg.matrix_norm(last_power).max()) ** (1 / (2 * POWERS))
    groups = next((g for g, reach in REACHES.items() if norm <= reach), max(REACHES))
    return groups, max(0, math.frexp(norm / REACHES[groups])[1])


def _polynomial(
    coefficients: Tensor, powers: Tensor, product: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The polynomial in A^2, group by group, highest first."""
    value = coefficients[-1] * powers[-1]
    for start in range(len(coefficients) - 1 - POWERS, -1, -POWERS):
        if start + POWERS + 1 < len(coefficients):
            value = product(value, powers[-1])
        value += torch.tensordot(coefficients[start + 1 : start + POWERS], powers[:-1], dims=1)
        value.diagonal(dim1=-2, dim2=-1).add_(coefficients[start])
    return value


@lru_cache
def _coefficients(groups: int) -> Array:
    """Of 1, A^2, ... in C and in S, shape (2, POWERS * groups + 1), each correctly rounded."""
    degree, reach = 2 * POWERS * groups + 1, Fraction(REACHES[groups])
    total = [Fraction(0)] * (degree + 1)
    previous, current = [0], [1]
    for k in range(degree + 1):
        factor = (2 if k else 1) * _bessel(k, reach)
        for power, entry in enumerate(current):
            total[power] += factor * entry / reach**power
        doubled = [0, *((2 if k else 1) * entry for entry in current)]
        padded = previous + [0] * (len(doubled) - len(previous))
        previous, current = current, [a + b for a, b in zip(doubled, padded, strict=True)]
    return np.array(total, dtype=np.float64).reshape(-1, 2).T


def _bessel(k: int, x: Fraction) -> Fraction:
    """J_k(x), |x| <= 4, by its series, which alternates, to 30 digits."""
    terms = (
        Fraction((-1) ** m, math.factorial(m) * math.factorial(m + k)) * (x / 2) ** (2 * m + k)
        for m in range(30)
    )
    return sum(terms, Fraction(0))


def _symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """A product that is known to be symmetric: panels of rows up to the diagonal, mirrored."""
    side = left.shape[-1]
    result = torch.empty_like(left)
    for start in range(0, side, PANEL):
        stop = min(start + PANEL, side)
        result[..., start:stop, :stop] = left[..., start:stop, :] @ right[..., :, :stop]
        result[..., :start, start:stop] = result[..., start:stop, :start].mT
    return result


def _hermitian_product(left: Tensor, right: Tensor) -> Tensor:
    """Of commuting Hermitian P + i Q and R + i S, kept as P + Q and R + S.

    The product has real part P R - Q S and imaginary part P S + Q R; their sum is
    (P + Q) R + (P - Q) S, where P - Q = (P + Q)^T.
    """
    return (left @ _even(right)).baddbmm_(left.mT, _odd(right))


def _even(kept: Tensor) -> Tensor:
    """The symmetric part: P of P + Q."""
    return (kept + kept.mT) / 2


def _odd(kept: Tensor) -> Tensor:
    """The skew part: Q of P + Q."""
    return (kept - kept.mT) / 2
