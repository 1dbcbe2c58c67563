"""Rigorous upper bounds of spectral norms, by residual; never by power iteration.

Two independent proofs of the same norm: `norms_upper` (a shifted Cholesky factorisation, proven by
its residual) makes the bounds that an engine carries, `residual_norms_upper` (the Schatten norm of
W^T W - t I) checks them. Blocks of a circular convolution go through these one frequency at a time
(`lipdeploy.spectral`), the skew part of a zero-padded one on the frequencies of a larger circular
grid that contains it (`lipdeploy.taylor`). `absolute_norms_upper` bounds |W|, what rounding needs.

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


CHUNK = 1 << 18
"""Entries of a stack that are worked on at a time, of which a dozen copies are made."""


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
    m, n = matrices.shape[-2:]
    stack = matrices.reshape(math.prod(matrices.shape[:-2]), m, n)
    step = max(1, CHUNK // max(1, m * n))
    parts = [_norms_upper(stack[i : i + step]) for i in range(0, len(stack), step)]
    bound: Array = np.concatenate([np.empty(0), *parts]).reshape(matrices.shape[:-2])
    return bound


def _norms_upper(matrices: NDArray[Any]) -> Array:
    """The same, all of the stack at once."""
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


SQUARINGS = 24
"""Most squarings of a residual; the Schatten norm that they reach exceeds the spectral one by a
factor of at most n^(1 / 2^25)."""


def _power_of_two(matrices: Array) -> NDArray[np.int64]:
    """An exponent e for each matrix, such that its entries times 2^-e are at most 1."""
    largest = np.abs(matrices).max(axis=(-2, -1), initial=0.0)
    exponent: NDArray[np.int64] = np.frexp(largest)[1].astype(np.int64)
    return exponent


def residual_norms_upper(matrices: NDArray[Any]) -> Array:
    """Upper bounds of spectral norms by the Schatten norm of a residual, (..., m, n) -> (...).

    Theorem: for any number t, ||W||_2^2 <= t + ||W^T W - t I||_2. For symmetric E and its computed,
    symmetric squares E_0 = E, E_(k+1) = fl(E_k^2),

        ||E_k||_2^2 = ||E_k^2||_2 <= ||E_(k+1)||_2 + gamma(n) ||E_k||_F^2,

    and ||E_K||_2 <= ||E_K||_F; going back from K to 0 bounds ||E||_2.

    Proof: E_k is symmetric, so the norm of its square is the square of its norm, and the computed
    square is within gamma(n) |E_k| |E_k| of it, whose Frobenius norm is at most ||E_k||_F^2. Each
    E_k is scaled by a power of two, which is exact but for what `TINY` covers.

    Nothing is guessed: t, near the mean of the diagonal, matters for tightness only, which is
    best (about 1e-9) where W is nearly t^(1/2) times an isometry. No code but the dot-product
    model is shared with `norms_upper`; of a complex matrix the Gram matrix is Hermitian, the same
    holds with gamma(2 n + 2) (Higham 2002, sec. 3.6), and the bound is that of its real embedding.

    Args:
        matrices: real or complex, finite.

    Raises:
        BoundError: if an entry is not finite or a bound overflows.
    """
    is_complex = np.iscomplexobj(matrices)
    w = np.asarray(matrices, dtype=np.complex128 if is_complex else np.float64)
    if not np.all(np.isfinite(w)):
        raise BoundError("a matrix with entries that are not finite has no norm bound")
    if w.shape[-1] > w.shape[-2]:
        w = np.swapaxes(w, -1, -2)
    scale = np.ldexp(1.0, _power_of_two(np.abs(w)))
    w = w / scale[..., None, None]
    m, n = w.shape[-2:]
    widen = 2 if is_complex else 1
    gram = _hermitian(np.swapaxes(w.conj(), -1, -2) @ w)
    diagonal = np.arange(n)
    centre = gram[..., diagonal, diagonal].real.mean(axis=-1)
    offset = gram.copy()
    offset[..., diagonal, diagonal] -= centre[..., None]
    # So far below the mean the largest eigenvalue is the one farthest from t.
    centre = centre - np.sqrt(sum_of_squares_upper(np.abs(offset)) / n) * min(n**0.5 / 2, 2)
    gram[..., diagonal, diagonal] = gram[..., diagonal, diagonal].real - centre[..., None]
    product_error = 1.001 * gamma(widen * m + 2) * sum_of_squares_upper(np.abs(w))
    largest = np.abs(gram[..., diagonal, diagonal]).max(axis=-1)
    norms = (
        _symmetric_norms_upper(gram, 1e-9 * np.abs(centre))
        + product_error
        + 4 * UNIT_ROUNDOFF * largest
        + TINY
    )
    squared = np.maximum(centre + norms, 0.0) * (1 + 8 * UNIT_ROUNDOFF)
    bound: Array = np.nextafter(np.sqrt(squared) * (1 + 4 * UNIT_ROUNDOFF) * scale, np.inf)
    if not np.all(np.isfinite(bound)):
        raise BoundError("a norm bound overflowed")
    return bound


def _hermitian(product: NDArray[Any]) -> NDArray[Any]:
    """The lower triangle of a computed product, mirrored: exactly Hermitian."""
    below, diagonal = np.tril(product, -1), np.arange(product.shape[-1])
    whole: NDArray[Any] = below + np.swapaxes(below, -1, -2).conj()
    whole[..., diagonal, diagonal] = product[..., diagonal, diagonal].real
    return whole


def _symmetric_norms_upper(e: NDArray[Any], tolerance: Array) -> Array:
    """The second half of the theorem: bounds of ||E||_2 for exactly Hermitian E, by squaring.

    Ends when a squaring improves no bound by more than `tolerance`, which is about what is left.
    """
    n = e.shape[-1]
    gamma_n = gamma((2 if np.iscomplexobj(e) else 1) * n + 2)
    scales, squares_of_norms = [], []
    previous = np.full(e.shape[:-2], np.inf)
    for _ in range(SQUARINGS):
        scale = np.ldexp(1.0, _power_of_two(np.abs(e)))
        e = e / scale[..., None, None]
        scales.append(scale)
        squares_of_norms.append(sum_of_squares_upper(np.abs(e)))
        bound = _unwind(np.sqrt(squares_of_norms[-1]), scales, squares_of_norms[:-1], gamma_n)
        if np.all(bound >= previous - tolerance):
            break
        previous = bound
        e = _hermitian(e @ e)
    smaller: Array = np.minimum(bound, previous)
    return smaller


def _unwind(norm: Array, scales: list[Array], squares: list[Array], gamma_n: float) -> Array:
    """From a bound of the norm of the last square back to that of the first matrix."""
    norm = norm * (1 + 4 * UNIT_ROUNDOFF) * scales[-1]
    for scale, square in zip(reversed(scales[:-1]), reversed(squares), strict=True):
        norm = np.sqrt(norm + 1.001 * gamma_n * square + TINY) * (1 + 8 * UNIT_ROUNDOFF) * scale
    return norm


def absolute_norms_upper(matrices: NDArray[Any]) -> Array:
    """Upper bounds of || |W| ||_2, the matrix of absolute values, shape (..., m, n) -> (...).

    Theorem (Collatz 1942, Wielandt 1950): for a matrix B >= 0 and any vector v > 0 the spectral
    radius of B is at most max_i (B v)_i / v_i. Here B = |W|^T |W|, whose spectral radius is
    || |W| ||_2^2, and v comes from a few steps of power iteration, floored away from 0: a bad v
    gives a large bound, never a wrong one. All terms are non-negative, so each computed (B v)_i has
    relative error at most gamma(m + n); underflow is covered by `TINY`, v being at least 2^-40.
    """
    w = np.abs(np.asarray(matrices, dtype=np.float64))
    if not np.all(np.isfinite(w)):
        raise BoundError("a matrix with entries that are not finite has no norm bound")
    m, n = w.shape[-2:]
    scale = np.ldexp(1.0, _power_of_two(w))
    w = w / scale[..., None, None]
    v = np.ones((*w.shape[:-2], n, 1))
    transposed = np.swapaxes(w, -1, -2)
    for _ in range(12):
        image = transposed @ (w @ v)
        largest = image.max(axis=(-2, -1), keepdims=True, initial=0.0)
        v = np.maximum(image / (largest + TINY), 2.0**-40)
    ratios = (transposed @ (w @ v)) / v
    squared = ratios.max(axis=(-2, -1), initial=0.0) * (1 + 2 * gamma(m + n + 4)) + TINY
    bound: Array = np.nextafter(np.sqrt(squared) * (1 + 4 * UNIT_ROUNDOFF) * scale, np.inf)
    if not np.all(np.isfinite(bound)):
        raise BoundError("a norm bound overflowed")
    return bound
