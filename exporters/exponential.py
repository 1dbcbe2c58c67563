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
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.errors import FreezeError

Array = NDArray[np.float64]

POWERS = 4
"""Powers of A^2 that are computed; the last one also bounds the norm of A."""

REACHES = {2: 1.875, 3: 4.0}
"""Norms up to which that many groups of `POWERS` powers of A^2 leave a remainder below 2^-53."""

LARGEST = 1e9
"""Norm beyond which seven digits of the angles, and more, are lost."""

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
        FreezeError: if an entry is not finite, or so large that float64 knows no angle.
    """
    side = blocks.shape[-1]
    largest = np.abs(blocks).max(initial=0.0)
    if not side * largest <= LARGEST:
        raise FreezeError(
            f"a skew kernel has an entry of {largest:.3g}, expected at most {LARGEST / side:.3g}: "
            "its exponential has no digits in float64; train again"
        )
    stack = blocks.reshape(-1, side, side)
    result = np.empty_like(stack)
    step = max(1, CHUNK // side**2)
    exponential = _of_hermitian if np.iscomplexobj(blocks) else _of_real
    for start in range(0, len(stack), step):
        result[start : start + step] = exponential(stack[start : start + step])
    return result.reshape(blocks.shape)


def _of_real(skew: Array) -> Array:
    cosine, sine, squarings = _cosine_and_sine(_symmetric_product(skew, skew), _symmetric_product)
    result: Array = _squared(cosine + skew @ sine, squarings)
    return result


def _of_hermitian(skew: NDArray[np.complex128]) -> NDArray[np.complex128]:
    hermitian = skew.imag - skew.real  # -i A = P + i Q with P = Im A, Q = -Re A
    square = -_hermitian_product(hermitian, hermitian)
    cosine, sine, squarings = _cosine_and_sine(square, _hermitian_product)
    sine = _hermitian_product(hermitian, sine)
    result = np.empty_like(skew)
    result.real = _even(cosine) - _odd(sine)
    result.imag = _odd(cosine) + _even(sine)
    return _squared(result, squarings)


def _squared(rotation: NDArray[Any], times: int) -> NDArray[Any]:
    for _ in range(times):
        rotation = rotation @ rotation
    return rotation


def _cosine_and_sine(
    square: Array, product: Callable[[Array, Array], Array]
) -> tuple[Array, Array, int]:
    """C and S, polynomials in A^2, with exp(A / 2^s) = C + A S, and s."""
    powers = np.empty((POWERS, *square.shape))
    powers[0] = square
    for k in range(1, POWERS):
        powers[k] = product(powers[(k - 1) // 2], powers[k // 2])
    groups, squarings = _plan(powers[-1])
    # Scaling coefficients instead of A keeps the powers, from which the scale was found.
    halves = np.ldexp(1.0, -2 * squarings * np.arange(POWERS * groups + 1))
    even, odd = _coefficients(groups) * halves
    sine = np.ldexp(odd, -squarings)
    return _polynomial(even, powers, product), _polynomial(sine, powers, product), squarings


def _plan(last_power: Array) -> tuple[int, int]:
    """Groups of powers, and squarings, for ||A||^8 = ||(A^2)^4|| <= ||(A^2)^4||_F."""
    norm = float(np.linalg.norm(last_power, axis=(-2, -1)).max()) ** (1 / (2 * POWERS))
    groups = next((g for g, reach in REACHES.items() if norm <= reach), max(REACHES))
    return groups, max(0, math.frexp(norm / REACHES[groups])[1])


def _polynomial(
    coefficients: Array, powers: Array, product: Callable[[Array, Array], Array]
) -> Array:
    """The polynomial in A^2, group by group, highest first."""
    diagonal = np.arange(powers.shape[-1])
    value: Array = coefficients[-1] * powers[-1]
    for start in range(len(coefficients) - 1 - POWERS, -1, -POWERS):
        if start + POWERS + 1 < len(coefficients):
            value = product(value, powers[-1])
        value += np.tensordot(coefficients[start + 1 : start + POWERS], powers[:-1], axes=1)
        value[..., diagonal, diagonal] += coefficients[start]
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


def _symmetric_product(left: Array, right: Array) -> Array:
    """A product that is known to be symmetric: panels of rows up to the diagonal, mirrored."""
    side = left.shape[-1]
    result = np.empty_like(left)
    for start in range(0, side, PANEL):
        stop = min(start + PANEL, side)
        result[..., start:stop, :stop] = left[..., start:stop, :] @ right[..., :, :stop]
        below = result[..., start:stop, :start]
        result[..., :start, start:stop] = np.swapaxes(below, -1, -2)
    return result


def _hermitian_product(left: Array, right: Array) -> Array:
    """Of commuting Hermitian P + i Q and R + i S, kept as P + Q and R + S.

    The product has real part P R - Q S and imaginary part P S + Q R; their sum is
    (P + Q) R + (P - Q) S, where P - Q = (P + Q)^T.
    """
    return left @ _even(right) + np.swapaxes(left, -1, -2) @ _odd(right)


def _even(kept: Array) -> Array:
    """The symmetric part: P of P + Q."""
    return (kept + np.swapaxes(kept, -1, -2)) / 2


def _odd(kept: Array) -> Array:
    """The skew part: Q of P + Q."""
    return (kept - np.swapaxes(kept, -1, -2)) / 2
