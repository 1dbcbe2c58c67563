"""Loss, accuracy and certified accuracy on validation images, while training."""

import math
from contextlib import closing
from typing import Protocol

import torch

from lipdeploy.training.data import Images, LabelledImages
from lipdeploy.training.learner import unchanged_buffers
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.losses import training_loss
from lipdeploy.training.metrics import CERTIFIED_COLUMNS
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.sampling import Share
from lipdeploy.training.tally import Tally

MOST_IMAGES = 500
"""Validation images that are certified, at equal distances, so that it stays cheap."""


@torch.no_grad()
def evaluated(network: LipConvNet, images: Images, share: Share, options: TrainingOptions) -> Tally:
    """Loss and right answers in float32; the network is left in evaluation mode.

    Args:
        network: whose buffers are left as they are.
        images: shared by the processes; all get the same answer.
        share: as many are computed at a time as while training, because those fit.
        options: which loss.
    """
    network.eval()
    network.body_dtype = None
    mine = torch.arange(len(images))[share.processes.rank :: share.processes.size]
    wanted = mine.split(share.part_size) if len(mine) else ()
    tally = Tally()
    with unchanged_buffers(network), closing(images.read(wanted)) as batches:
        for pixels, labels in batches:
            logits = network(pixels)
            loss = training_loss(network, logits, labels, options)
            tally += Tally.of(loss, logits, labels)
    return tally.over(share.processes)


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
    images: Images,
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
    chosen = images.select(torch.arange(count) * len(images) // count).loaded()
    shares = certify(network, chosen, tuple(CERTIFIED_COLUMNS.values()))
    return dict(zip(CERTIFIED_COLUMNS, shares, strict=True))
