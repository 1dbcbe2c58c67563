"""Losses that trade accuracy for margin.

All of them work on logits as the network gives them: in units of `INPUT_GAIN` for a change of l2
norm 1 of pixels in [0, 1]. Offsets and temperatures are given in pixels and scaled here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdeploy.training.heads import MlpHead, class_rows
from lipdeploy.training.lipconvnet import INPUT_GAIN, LipConvNet
from lipdeploy.training.options import TrainingOptions

SMALLEST_SQUARE = 1e-12
"""Of the distance of two class rows: the root of less has no useful gradient."""


def offset_cross_entropy(
    logits: Tensor, labels: Tensor, offset: float, temperature: float
) -> Tensor:
    """Cross-entropy of (logits - offset * onehot) / temperature, times temperature.

    The offset asks for a margin, the temperature says how softly (Prach & Lampert, 2022).

    Args:
        logits: shape (batch, classes).
        labels: class indices, shape (batch,).
        offset: u, in the units of the logits.
        temperature: T, in the units of the logits.
    """
    entropies = _cross_entropies(logits, labels, offset, temperature)
    return entropies.mean() * temperature


def annealed_cross_entropy(
    logits: Tensor, labels: Tensor, offset: float, temperature: float, beta: float
) -> Tensor:
    """Logit annealing: the mean of -T (1 - p)^beta log p (Lai et al., 2025).

    p is the probability of the label under (logits - offset * onehot) / T. What has its margin is
    left alone, so that what a network of bounded slope can do goes to the others. For beta = 0 it
    is `offset_cross_entropy`.

    Args:
        logits: shape (batch, classes).
        labels: class indices, shape (batch,).
        offset: xi, in the units of the logits.
        temperature: T, in the units of the logits.
        beta: how soon an image is left alone; 0, or at least 1, where the gradient is finite.
    """
    entropies = _cross_entropies(logits, labels, offset, temperature)
    rest = -torch.expm1(-entropies)  # 1 - p, to all digits where p is near 1
    return (rest.pow(beta) * entropies).mean() * temperature


def _cross_entropies(logits: Tensor, labels: Tensor, offset: float, temperature: float) -> Tensor:
    """-log p of each label, shape (batch,)."""
    shifted = logits - offset * functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return functional.cross_entropy(shifted / temperature, labels, reduction="none")


def certified_margins(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """The smallest (z_y - z_j) / ||w_y - w_j||_2 over all rivals j, shape (batch,).

    For a linear head that is the distance in feature space to where the label is no longer the
    largest (Tsuzuku et al., 2018); negative where it is not the largest now.

    Args:
        logits: shape (batch, classes).
        labels: class indices, shape (batch,).
        rows: w, shape (classes, d).
    """
    products = rows @ rows.T
    squares = products.diagonal()
    distances = squares[:, None] + squares - 2 * products
    # The distance of a row to itself is 0, where the root has no gradient; it is not used.
    same = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    distances = distances.masked_fill(same, 1.0).clamp_min(SMALLEST_SQUARE).sqrt()
    own = labels.unsqueeze(1)
    margins = (logits.gather(1, own) - logits) / distances[labels]
    return margins.scatter(1, own, torch.inf).amin(dim=1)


def certificate_reward(logits: Tensor, labels: Tensor, head: nn.Module) -> Tensor:
    """Mean over the batch of the certified margin, 0 for what is wrong.

    Certificate regularisation subtracts it from the loss (Singla, Singla & Feizi, 2022). It has a
    gradient on right answers only. For an MLP head, whose hidden layer is 1-Lipschitz, the rows of
    the output layer give a smaller certificate than the head's own, and one that has a gradient.
    """
    return certified_margins(logits, labels, class_rows(head)).relu().mean()


def training_loss(
    network: LipConvNet, logits: Tensor, labels: Tensor, options: TrainingOptions
) -> Tensor:
    """The loss of one batch.

    Args:
        network: the network that made the logits.
        logits: shape (batch, classes).
        labels: class indices, shape (batch,).
        options: which loss; its offset and temperature are l2 distances in pixels of [0, 1].
    """
    offset, temperature = options.offset * INPUT_GAIN, options.temperature * INPUT_GAIN
    if options.loss == "annealed":
        loss = annealed_cross_entropy(logits, labels, offset, temperature, options.beta)
    else:
        loss = offset_cross_entropy(logits, labels, offset, temperature)
    if options.certificate:
        loss = loss - options.certificate * certificate_reward(logits, labels, network.head)
    if options.curvature and isinstance(network.head, MlpHead):
        loss = loss + options.curvature * network.head.curvature()
    return loss


def correct(logits: Tensor, labels: Tensor) -> int:
    """Number of rows whose largest logit is the label's."""
    return int(torch.count_nonzero(logits.argmax(dim=1) == labels))
