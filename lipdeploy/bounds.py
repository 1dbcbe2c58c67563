"""Rigorous upper bounds of spectral norms, by residual; never by power iteration.

Assumption throughout: float64 arithmetic obeys the standard model, that is, each +, -, *, / and
sqrt has relative error at most u = 2**-53, and an inner product of length n, in any order and with
or without fused operations, satisfies |fl(x.y) - x.y| <= gamma(n) |x|.|y| with
gamma(n) = n u / (1 - n u) (Higham, "Accuracy and stability of numerical algorithms", 2002, ch. 3).
Underflow adds at most 2**-1074 to each product, which `TINY` covers.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.errors import BoundError

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53
TINY = 1e-280
"""Absolute slack for underflow, far above what it can cause at sizes that fit into memory."""


def gamma(n: int) -> float:
    """Upper bound of n u / (1 - n u) for inner products of length n in float64."""
    nu = n * UNIT_ROUNDOFF
    if nu >= 0.01:
        raise BoundError(f"inner products of length {n} are too long for the error model")
    return nu / (1 - nu) * (1 + 1e-12)


def up(x: float) -> float:
    """The next float64 above x."""
    return math.nextafter(x, math.inf)


def down(x: float) -> float:
    """The next float64 below x."""
    return math.nextafter(x, -math.inf)


def sum_of_squares_upper(matrices: NDArray[Any]) -> Array:
    """Upper bound of the squared Frobenius norm of each matrix, shape (..., m, n) -> (...)."""
    squares = np.square(matrices, dtype=np.float64).sum(axis=(-2, -1))
    count = matrices.shape[-1] * matrices.shape[-2]
    # count roundings of sums, one of each square, two of this line.
    bound: Array = squares * (1 + 2 * gamma(count + 4)) + TINY
    return bound


def frobenius_upper(matrices: NDArray[Any]) -> Array:
    """Upper bound of the Frobenius norm of each matrix, shape (..., m, n) -> (...)."""
    bound: Array = np.sqrt(sum_of_squares_upper(matrices)) * (1 + 4 * UNIT_ROUNDOFF)
    return bound


def row_norms_upper(rows: NDArray[Any]) -> Array:
    """Upper bound of the l2 norm of each row, shape (..., n) -> (...)."""
    return frobenius_upper(rows[..., None, :])


def largest_eigenvalue_upper(matrices: Array, matrix_error: Array) -> Array:
    """Upper bounds of the largest eigenvalues of symmetric matrices near the given ones.

    Theorem: let S be symmetric, G its computed version, exactly symmetric, with
    ||G - S||_2 <= e. For any number T and any matrix R, with M = fl(T I - G),

        lambda_max(S) <= T + ||M - R R^T||_2 + ||M - (T I - G)||_2 + e.

    Proof: x^T S x <= x^T G x + e, and T I - G = M + (T I - G - M) = R R^T + (M - R R^T) +
    (T I - G - M), where R R^T is positive semidefinite. M - (T I - G) is diagonal with entries of
    at most u |M_ii|. The computed residual D = fl(M - fl(R R^T)) satisfies, elementwise,
    |D - (M - R R^T)| <= gamma(n) |R| |R|^T + u |D|, hence
    ||M - R R^T||_2 <= (1 + u) ||D||_F + gamma(n) ||R||_F^2.

    T and R come from LAPACK as guesses: a wrong guess gives a large bound, never a wrong one.
    (Rump, "Verification of positive definiteness", 2006, has the idea of a shifted Cholesky.)

    Args:
        matrices: G, shape (..., n, n), exactly symmetric.
        matrix_error: e, shape (...).

    Returns:
        Shape (...).

    Raises:
        BoundError: if an entry is not finite or the factorisation fails.
    """
    if not np.all(np.isfinite(matrices)) or not np.all(np.isfinite(matrix_error)):
        raise BoundError("a matrix with entries that are not finite has no norm bound")
    n = matrices.shape[-1]
    try:
        guess = np.linalg.eigvalsh(matrices)[..., -1]
        trace = np.abs(np.diagonal(matrices, axis1=-2, axis2=-1)).sum(axis=-1)
        shift = guess + 1e-12 * np.abs(guess) + 8 * n * UNIT_ROUNDOFF * trace + TINY
        shifted = -matrices
        diagonal = np.arange(n)
        shifted[..., diagonal, diagonal] += shift[..., None]
        factor = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError as error:
        raise BoundError(f"no proof of a norm: {error}") from error
    residual = shifted - factor @ np.swapaxes(factor, -1, -2)
    diagonal_error = 2 * UNIT_ROUNDOFF * np.abs(shifted[..., diagonal, diagonal]).max(axis=-1)
    residual_error = 1.001 * gamma(n) * sum_of_squares_upper(factor)
    slack = frobenius_upper(residual) * (1 + 1e-12) + residual_error + diagonal_error
    bound: Array = shift + (slack + matrix_error + TINY) * (1 + 1e-12)
    bound = bound + np.abs(bound) * 4 * UNIT_ROUNDOFF
    if not np.all(np.isfinite(bound)):
        raise BoundError("a norm bound overflowed")
    return bound


def norms_upper(matrices: NDArray[Any]) -> Array:
    """Upper bounds of the spectral norms of a stack of matrices, shape (..., m, n) -> (...).

    ||W||_2^2 is the largest eigenvalue of W^T W or W W^T, whichever is smaller. With G the
    computed product, its lower triangle mirrored, |G - W^T W| <= gamma(m) |W|^T |W| elementwise,
    so ||G - W^T W||_2 <= gamma(m) ||W||_F^2. About 1e-10 above the truth for an orthogonal matrix
    of 1024 rows.

    Raises:
        BoundError: as `largest_eigenvalue_upper`.
    """
    w = np.asarray(matrices, dtype=np.float64)
    if w.shape[-1] > w.shape[-2]:
        w = np.swapaxes(w, -1, -2)
    # Scaling by a power of two keeps the squares in range. It is exact but for entries 2**-1022
    # times smaller than the largest, whose loss `TINY` covers.
    largest = np.abs(w).max(initial=0.0)
    if not np.isfinite(largest):
        raise BoundError("a matrix with entries that are not finite has no norm bound")
    exponent = int(np.frexp(largest)[1])
    w = np.ldexp(w, -exponent)
    product = np.tril(np.swapaxes(w, -1, -2) @ w)
    gram = product + np.swapaxes(np.tril(product, -1), -1, -2)
    error = 1.001 * gamma(w.shape[-2]) * sum_of_squares_upper(w)
    squared = np.maximum(largest_eigenvalue_upper(gram, error), 0.0)
    # Scaling back is exact but for results below the normal range, which nextafter covers.
    scaled_back = np.ldexp(np.sqrt(squared) * (1 + 4 * UNIT_ROUNDOFF), exponent)
    bound: Array = np.nextafter(scaled_back, np.inf)
    if not np.all(np.isfinite(bound)):
        raise BoundError("a norm bound overflowed")
    return bound


def norm_upper(matrix: NDArray[Any]) -> float:
    """Upper bound of the spectral norm of one matrix, shape (m, n); see `norms_upper`."""
    return float(norms_upper(matrix))
