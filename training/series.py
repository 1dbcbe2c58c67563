"""The exponential series of a skew operator and its fast gradient, as one autograd function.

For a skew-symmetric linear operator A the layer computes y = exp(A) x. With
phi(A) = sum_k A^k / (k + 1)! we have exp(A) x = x + A phi(A) x, so one Horner pass gives phi(A) x
and, with one more product, exp(A) x.

The backward pass runs the same series with -A (the transpose of exp(A) is exp(-A)) and forms the
gradient of the operator once: the exact Frechet derivative integral_0^1 (exp((1-s)A)^T g)
(exp(sA) x)^T ds is replaced by the product of the two averages, (phi(-A) g) (phi(A) x)^T (Singla &
Feizi, "Improved techniques for deterministic l2 robustness", 2022). The gradient of x is that of
the truncated series; the gradient of A is an approximation, exact to first order in A.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight


class SkewOperator(Protocol):
    """A skew-symmetric operator that depends linearly on a tensor of weights."""

    def addmv(self, weights: Tensor, x: Tensor, v: Tensor, scale: float) -> Tensor:
        """Return x + scale * A(weights) v."""

    def weight_gradient(self, weights: Tensor, output: Tensor, v: Tensor) -> Tensor:
        """Return the gradient of <output, A(weights) v> by the weights."""


class BlockOperator:
    """A family of skew matrices: weights (f, c, c) act on rows, v of shape (f, n, c)."""

    def addmv(self, weights: Tensor, x: Tensor, v: Tensor, scale: float) -> Tensor:
        """Return x + scale * v @ weights."""
        return torch.baddbmm(x, v, weights, alpha=scale)

    def weight_gradient(self, weights: Tensor, output: Tensor, v: Tensor) -> Tensor:
        """Return v^T @ output, shape (f, c, c)."""
        return torch.bmm(v.transpose(1, 2), output)


class ZeroPaddedConvolution:
    """Cross-correlation with zero padding: weights (c, c, k, k) act on v of shape (n, c, h, w)."""

    def addmv(self, weights: Tensor, x: Tensor, v: Tensor, scale: float) -> Tensor:
        """Return x + scale * (weights * v)."""
        return x + scale * functional.conv2d(v, weights, padding="same")

    def weight_gradient(self, weights: Tensor, output: Tensor, v: Tensor) -> Tensor:
        """Return the gradient of the taps, shape (c, c, k, k)."""
        padding = weights.shape[-1] // 2
        gradient: Tensor = conv2d_weight(v, weights.shape, output, padding=padding)
        return gradient


def _exponential(
    operator: SkewOperator, weights: Tensor, x: Tensor, degree: int, sign: float
) -> tuple[Tensor, Tensor]:
    """Return phi(sign A) x and exp(sign A) x, the exponential to the given degree."""
    averaged = x
    for k in range(degree, 1, -1):
        averaged = operator.addmv(weights, x, averaged, sign / k)
    return averaged, operator.addmv(weights, x, averaged, sign)


class _FastExponential(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch leaves the type of a context open
        operator: SkewOperator,
        weights: Tensor,
        x: Tensor,
        degree: int,
    ) -> Tensor:
        averaged, y = _exponential(operator, weights, x, degree, 1.0)
        ctx.save_for_backward(weights, averaged)
        ctx.operator, ctx.degree = operator, degree
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None]:  # noqa: ANN401
        weights, averaged = ctx.saved_tensors
        averaged_gradient, x_gradient = _exponential(
            ctx.operator, weights, gradients[0].contiguous(), ctx.degree, -1.0
        )
        weight_gradient = ctx.operator.weight_gradient(weights, averaged_gradient, averaged)
        return None, weight_gradient, x_gradient, None


_fast_exponential: Callable[[SkewOperator, Tensor, Tensor, int], Tensor] = _FastExponential.apply


def apply_exponential(operator: SkewOperator, weights: Tensor, x: Tensor, degree: int) -> Tensor:
    """Return exp(A(weights)) x by its series to the given degree, with the fast gradient.

    Args:
        operator: how the weights act.
        weights: the skew weights, in the shape that the operator takes.
        x: the argument, in the shape that the operator takes.
        degree: highest power of A, at least 1.
    """
    return _fast_exponential(operator, weights, x, degree)
