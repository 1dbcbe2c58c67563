"""Skew-symmetric convolution kernels, held by their independent half and scaled by a norm."""

import math

import torch
from torch import Tensor, nn


def skew_taps(half: Tensor, centre: Tensor) -> Tensor:
    """The k*k taps of a skew-symmetric convolution kernel, row by row.

    A kernel is skew when the tap at offset -d is minus the transpose of the tap at d.

    Args:
        half: the taps before the central one, shape ((k*k - 1) / 2, c, c).
        centre: the entries below the diagonal of the central tap, shape (c * (c - 1) / 2,).

    Returns:
        Shape (k*k, c, c), axes (tap, output channel, input channel).
    """
    channels = half.shape[-1]
    rows, columns = torch.tril_indices(channels, channels, offset=-1, device=half.device)
    lower = half.new_zeros(channels, channels).index_put((rows, columns), centre)
    middle = (lower - lower.T).unsqueeze(0)
    return torch.cat([half, middle, -half.flip(0).transpose(1, 2)])


def unfoldings(taps: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices whose spectral norms, times k, bound the norm of the convolution.

    Of the four unfoldings of Singla & Feizi ("Fantastic four", 2021) the other two are the
    transposes of these, up to order and sign, because the kernel is skew.

    Args:
        taps: shape (k*k, c, c).

    Returns:
        The unfoldings (output; input, row, column) and (output, row; input, column), of shapes
        (c, k*k*c) and (k*c, k*c).
    """
    channels = taps.shape[-1]
    k = math.isqrt(taps.shape[0])
    flat = taps.permute(1, 0, 2).reshape(channels, -1)
    mixed = taps.view(k, k, channels, channels).permute(2, 0, 3, 1).reshape(k * channels, -1)
    return flat, mixed


class SkewKernel(nn.Module):
    """A learned skew kernel, scaled so that the convolution's norm stays near `target / k` times k.

    While training, each call runs one step of power iteration on two unfoldings and divides by the
    smaller estimate; the last scale is kept for evaluation. The estimate steers training only:
    exp(A) is orthogonal for every skew A, and what is certified is bounded after freezing.
    """

    taps: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.channels, self.kernel_size = channels, kernel_size
        # 1 for a matrix; for 3 x 3 taps the norm of the convolution is at most 3 * 0.7.
        self.target = 1.0 if kernel_size == 1 else 0.7
        reach = 1 / math.sqrt(channels)
        count = (kernel_size**2 - 1) // 2
        self.taps = nn.Parameter(torch.empty(count, channels, channels).uniform_(-reach, reach))
        entries = channels * (channels - 1) // 2
        self.centre = nn.Parameter(torch.empty(entries).uniform_(-reach, reach))
        self.register_buffer("scale", torch.ones(()))
        for index, matrix in enumerate(unfoldings(skew_taps(self.taps, self.centre).detach())):
            vector = torch.randn(matrix.shape[1])
            self.register_buffer(f"vector{index}", vector / vector.norm())
        with torch.no_grad():
            for _ in range(20):
                self._rescale(skew_taps(self.taps, self.centre))

    def _rescale(self, kernel: Tensor) -> Tensor:
        norms = []
        for index, matrix in enumerate(unfoldings(kernel)):
            vector = self.get_buffer(f"vector{index}")
            with torch.no_grad():
                left = nn.functional.normalize(matrix @ vector, dim=0)
                vector.copy_(nn.functional.normalize(matrix.T @ left, dim=0))
            norms.append(torch.dot(left, matrix @ vector.clone()))
        scale: Tensor = self.target / torch.stack(norms).min().clamp_min(1e-12)
        self.scale.copy_(scale.detach())
        return scale

    def forward(self) -> Tensor:
        """Return the scaled taps, shape (k*k, c, c)."""
        taps = skew_taps(self.taps, self.centre)
        scale = self._rescale(taps) if self.training else self.scale
        return taps * scale
