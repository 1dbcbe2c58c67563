"""Orthogonal convolutions as products of projections: BCOP and AOC.

Block Convolution Orthogonal Parametrisation (Li et al., "Preventing gradient attenuation in
Lipschitz constrained convolutional networks", 2019; the construction is that of Xiao et al., 2018):
with an orthogonal Q and symmetric projections P_i, R_i

    W = Q (P_1 + (I - P_1) S_r) (R_1 + (I - R_1) S_c) ... of k - 1 such pairs,

S_r, S_c the shifts by one row and one column. Each factor is orthogonal, since P and I - P are
orthogonal projections onto complements and shifts are unitary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdeploy.training.circular import KernelLayer, orthonormal


def extended(taps: Tensor, columns: Tensor, axis: int) -> Tensor:
    """The kernel times P + (I - P) S, one tap longer along `axis`.

    Args:
        taps: shape (rows, columns, c, c).
        columns: orthonormal, shape (c, c // 2); P = columns columns^T.
        axis: 0 for the shift by a row, 1 by a column.
    """
    kept = (taps @ columns) @ columns.T
    behind, before = [0] * 8, [0] * 8
    place = 7 - 2 * axis
    behind[place], before[place - 1] = 1, 1
    return functional.pad(kept, behind) + functional.pad(taps - kept, before)


def product_of_projections(matrix: Tensor, columns: Tensor) -> Tensor:
    """The taps of W, shape (k*k, c, c).

    Args:
        matrix: Q, shape (c, c).
        columns: of the projections, row and column by turns, shape (2 (k - 1), c, c // 2).
    """
    taps = matrix[None, None]
    for index, basis in enumerate(columns):
        taps = extended(taps, basis, index % 2)
    return taps.flatten(0, 1)


class BcopConvolution(KernelLayer):
    """y = W x + b with W the product of an orthogonal matrix and 2 (k - 1) projections."""

    def make_weights(self) -> None:
        """See the base class."""
        c = self.kernel_channels()
        self.weight = nn.Parameter(torch.empty(self.channels, self.channels))
        nn.init.orthogonal_(self.weight)
        # A matrix has no projections: these get no gradient, for which processes would wait.
        columns = torch.randn(2 * (self.kernel_size - 1), c, c // 2)
        self.columns = nn.Parameter(columns, requires_grad=self.kernel_size > 1)

    def kernel_channels(self) -> int:
        """Channels of the projections."""
        return self.channels

    def taps(self) -> Tensor:
        """The taps of W, shape (k*k, c, c)."""
        return product_of_projections(orthonormal(self.weight), orthonormal(self.columns))


class AocConvolution(BcopConvolution):
    """Adaptive orthogonal convolution (Boissin et al., 2025).

    Without a stride that is BCOP. With one it is a convolution of projections on the fine grid,
    then an orthogonal matrix from each 2 x 2 cell to its channels (a reshaped kernel, which is
    orthogonal as stride and kernel size are equal).
    """

    def kernel_channels(self) -> int:
        """Channels of the projections: on the fine grid a quarter."""
        return self.channels // 4 if self.strided else self.channels

    def taps(self) -> Tensor:
        """The taps of W, shape (k*k, c, c)."""
        if not self.strided:
            return super().taps()
        columns = orthonormal(self.columns)
        identity = torch.eye(columns.shape[1]).to(columns)
        fine = product_of_projections(identity, columns)
        return orthonormal(self.weight) @ on_cells(fine)


def on_cells(taps: Tensor) -> Tensor:
    """A convolution on a grid as one on its 2 x 2 cells, whose channels are ordered (c, 2, 2).

    The output at place i of a cell reads, for an offset d, place (i + d) mod 2 of the cell at
    floor((i + d) / 2), along each axis.

    Args:
        taps: shape (k*k, c, c), k of 1 or 3, which reach no further than the next cell.

    Returns:
        Shape (k*k, 4 c, 4 c).
    """
    k, c = round(len(taps) ** 0.5), taps.shape[1]
    reach = k // 2
    cells = taps.new_zeros(k, k, c, 2, 2, c, 2, 2)
    for index, tap in enumerate(taps):
        down, right = index // k - reach, index % k - reach
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            (cell_row, from_row), (cell_column, from_column) = (
                divmod(row + down, 2),
                divmod(column + right, 2),
            )
            place = cell_row + reach, cell_column + reach
            cells[(*place, slice(None), row, column, slice(None), from_row, from_column)] = tap
    return cells.reshape(k * k, 4 * c, 4 * c)
