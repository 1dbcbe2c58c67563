"""Gradient-norm-preserving activations and pooling on the last (channel) axis."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _MaxMin(torch.autograd.Function):
    """Both in one tensor, with one mask for the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        first, second = x.chunk(2, dim=-1)
        ctx.save_for_backward(first >= second)
        y = torch.empty_like(x)
        largest, smallest = y.chunk(2, dim=-1)
        torch.maximum(first, second, out=largest)
        torch.minimum(first, second, out=smallest)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        (mask,) = ctx.saved_tensors
        largest, smallest = gradients[0].chunk(2, dim=-1)
        gradient = torch.empty_like(gradients[0])
        first, second = gradient.chunk(2, dim=-1)
        torch.where(mask, largest, smallest, out=first)
        torch.where(mask, smallest, largest, out=second)
        return gradient


class _ChannelMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        first, second = x.chunk(2, dim=-1)
        ctx.save_for_backward(first >= second)
        return torch.maximum(first, second)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        (mask,) = ctx.saved_tensors
        (gradient,) = gradients
        both = gradient.new_empty(*gradient.shape[:-1], 2 * gradient.shape[-1])
        first, second = both.chunk(2, dim=-1)
        torch.mul(gradient, mask, out=first)
        torch.mul(gradient, ~mask, out=second)
        return both


_max_min: Callable[[Tensor], Tensor] = _MaxMin.apply
_channel_max: Callable[[Tensor], Tensor] = _ChannelMax.apply


class MaxMin(nn.Module):
    """Sort each pair (channel i, channel i + c/2) into maximum and minimum (Anil et al., 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., c) to (..., c), c even."""
        return _max_min(x)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair (channel i, channel i + c/2) rotated by an angle; angles of shape (c/2,)."""
    first, second = x.chunk(2, dim=-1)
    cosines, sines = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([cosines * first - sines * second, sines * first + cosines * second], dim=-1)


class Householder(nn.Module):
    """Reflect each pair where it lies on one side of a learned line (Singla et al., 2022).

    A rotation, `MaxMin`, and the rotation back; order n is n of these in a row, with angles of
    their own. Angles begin at 0, which is MaxMin.

    Args:
        channels: c, even.
        order: how many reflections.
    """

    def __init__(self, channels: int, order: int = 1) -> None:
        super().__init__()
        self.angles = nn.Parameter(torch.zeros(order, channels // 2))
        with torch.no_grad():
            # Equal lines would make every reflection but the first idle.
            self.angles.copy_(torch.arange(order)[:, None] * torch.pi / (2 * order))
        self.sort = MaxMin()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., c) to (..., c)."""
        for angles in self.angles:
            x = rotated(self.sort(rotated(x, angles)), -angles)
        return x


class ProjectionPooling(nn.Module):
    """Distance of each pair to a half-line of a learned direction (Singla & Feizi, 2022).

    A distance to a set is 1-Lipschitz. Rotated so that the half-line is the positive first axis,
    the pair (p, q) has the distance |(min(p, 0), q)|.

    Args:
        channels: c, even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.angles = nn.Parameter(torch.empty(channels // 2).uniform_(-torch.pi, torch.pi))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., c) to (..., c/2)."""
        first, second = rotated(x, self.angles).chunk(2, dim=-1)
        y: Tensor = torch.linalg.vector_norm(torch.stack([first.clamp_max(0), second]), dim=0)
        return y


class ChannelMax(nn.Module):
    """Keep the maximum of each pair (channel i, channel i + c/2); 1-Lipschitz."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., c) to (..., c/2), c even."""
        return _channel_max(x)


class SpaceToDepth(nn.Module):
    """Move 2 x 2 neighbourhoods into channels; an odd grid gets a zero row and column first."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n, batch, c) to (m, m, batch, 4 c), m = ceil(n / 2); channel order (c, 2, 2)."""
        odd = x.shape[0] % 2
        if odd:
            x = functional.pad(x, (0, 0, 0, 0, 0, odd, 0, odd))
        m, batch, channels = x.shape[0] // 2, x.shape[2], x.shape[3]
        cells = x.reshape(m, 2, m, 2, batch, channels).permute(0, 2, 4, 5, 1, 3)
        return cells.reshape(m, m, batch, 4 * channels)
