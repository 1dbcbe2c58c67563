"""Losses that trade accuracy for margin."""

import torch
from torch import Tensor
from torch.nn import functional

from lipdeploy.training.heads import MlpHead
from lipdeploy.training.lipconvnet import INPUT_GAIN, LipConvNet


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
    shifted = logits - offset * functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return functional.cross_entropy(shifted / temperature, labels) * temperature


def training_loss(
    network: LipConvNet,
    logits: Tensor,
    labels: Tensor,
    *,
    offset: float,
    temperature: float,
    curvature: float,
) -> Tensor:
    """The loss of one batch.

    Args:
        network: the network that made the logits.
        logits: shape (batch, classes).
        labels: class indices, shape (batch,).
        offset: u, an l2 distance in pixels of [0, 1].
        temperature: T, likewise.
        curvature: weight of the curvature penalty of an MLP head.
    """
    scaled = offset * INPUT_GAIN, temperature * INPUT_GAIN
    loss = offset_cross_entropy(logits, labels, *scaled)
    if curvature and isinstance(network.head, MlpHead):
        loss = loss + curvature * network.head.curvature()
    return loss


def correct(logits: Tensor, labels: Tensor) -> int:
    """Number of rows whose largest logit is the label's."""
    return int(torch.count_nonzero(logits.argmax(dim=1) == labels))
