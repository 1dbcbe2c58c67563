"""Certified accuracy on validation images, while training."""

import math
from typing import Protocol

import torch

from lipdeploy.training.data import LabelledImages
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.metrics import CERTIFIED_COLUMNS
from lipdeploy.training.options import TrainingOptions

MOST_IMAGES = 500
"""Validation images that are certified, at equal distances, so that it stays cheap."""


class Certify(Protocol):
    """Freezes and certifies a network: training itself knows nothing of that."""

    def __call__(
        self, network: LipConvNet, images: LabelledImages, radii_255: tuple[int, ...]
    ) -> tuple[float, ...]:
        """Shares of images that are right and certified beyond each radius, in units of 1/255.

        The network is in evaluation mode and must be left as it is; NaN for what is not known.
        """


def certified_columns(
    certify: Certify | None,
    network: LipConvNet,
    images: LabelledImages,
    epoch: int,
    options: TrainingOptions,
) -> dict[str, float]:
    """The certified columns of an epoch's metrics; NaN where it was not its turn.

    Args:
        certify: how; None for not at all.
        network: in evaluation mode.
        images: those set aside for validation.
        epoch: the one that was just done.
        options: say how often; the last epoch is always certified.
    """
    every, is_last = options.certify_every, epoch >= options.epochs
    is_due = is_last or (every > 0 and epoch % every == 0)
    if certify is None or not is_due or not len(images):
        return dict.fromkeys(CERTIFIED_COLUMNS, math.nan)
    count = min(MOST_IMAGES, len(images))
    chosen = images.select(torch.arange(count) * len(images) // count)
    shares = certify(network, chosen, tuple(CERTIFIED_COLUMNS.values()))
    return dict(zip(CERTIFIED_COLUMNS, shares, strict=True))
