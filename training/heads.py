"""Classification heads: feature vectors (batch, d) to logits (batch, classes)."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import orthogonal

from lipdeploy.training.architecture import HeadName


def orthogonal_weight(linear: nn.Module) -> Tensor:
    """The weight of a parametrised linear layer, as it is applied."""
    weight = linear.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(linear).__name__} has no weight")
    return weight


class OrthogonalHead(nn.Module):
    """A linear head with orthonormal rows (columns, when there are more classes than features)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = orthogonal(nn.Linear(features, classes), orthogonal_map="householder")

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, shape (batch, classes)."""
        logits: Tensor = self.linear(features)
        return logits


class NormalizedHead(nn.Module):
    """Last-layer normalisation: every row has unit norm (Singla, Singla & Feizi, 2022)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def matrix(self) -> Tensor:
        """The rows as they are applied, shape (classes, features)."""
        return functional.normalize(self.linear.weight, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, shape (batch, classes)."""
        return functional.linear(features, self.matrix(), self.linear.bias)


class MlpHead(nn.Module):
    """One hidden softplus layer: orthogonal, softplus, unit rows; so every logit is 1-Lipschitz.

    It is certified by its curvature (Singla & Feizi, 2020 and 2022), not by that constant.
    """

    def __init__(self, features: int, classes: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or features
        # For a square matrix Cayley's map is ten times faster than products of reflections.
        self.hidden = orthogonal(nn.Linear(features, hidden), orthogonal_map="cayley")
        self.output = NormalizedHead(hidden, classes)
        vectors = functional.normalize(torch.randn(classes, features), dim=1)
        self.register_buffer("vectors", vectors)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, shape (batch, classes)."""
        logits: Tensor = self.output(functional.softplus(self.hidden(features)))
        return logits

    def curvature(self) -> Tensor:
        """Estimate, for training only, of the mean over classes of the curvature constant.

        The constant of class y is lambda_max(W^T diag(a) W) / 4 with a the largest negative part
        of w_y - w_j over the rivals j; one step of power iteration a call, differentiable in the
        weights. The certificate proves its own constant from the frozen weights.
        """
        first, second = orthogonal_weight(self.hidden), self.output.matrix()
        negative = (second.amax(dim=0) - second).clamp_min(0)
        vectors = self.get_buffer("vectors")
        with torch.no_grad():
            image = ((vectors @ first.T) * negative) @ first
            vectors.copy_(functional.normalize(image, dim=1))
        projected = vectors.clone() @ first.T
        return (projected.square() * negative).sum(dim=1).mean() / 4


def class_rows(head: nn.Module) -> Tensor:
    """One row for each class as it is applied last, shape (classes, d).

    Raises:
        TypeError: if the head has none.
    """
    if isinstance(head, OrthogonalHead):
        return orthogonal_weight(head.linear)
    if isinstance(head, NormalizedHead):
        return head.matrix()
    if isinstance(head, MlpHead):
        return head.output.matrix()
    raise TypeError(f"{type(head).__name__} has no row for each class")


def make_head(name: HeadName, features: int, classes: int) -> nn.Module:
    """The head called `name`."""
    kinds: dict[HeadName, type[nn.Module]] = {
        "linear": OrthogonalHead,
        "lln": NormalizedHead,
        "mlp": MlpHead,
    }
    return kinds[name](features, classes)
