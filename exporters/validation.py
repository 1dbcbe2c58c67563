"""Certified accuracy of a network that is still being trained, through its frozen form."""

import numpy as np

from lipdeploy.artifact import make_manifest
from lipdeploy.certificate import Answers, Certifier
from lipdeploy.exporters.freeze import freeze
from lipdeploy.training.data import LabelledImages
from lipdeploy.training.lipconvnet import LipConvNet

MOST_VALUES = 1 << 24
"""Numbers, 128 MiB in float64, that the images of a batch may become on the way."""


def certified_shares(
    network: LipConvNet, images: LabelledImages, radii_255: tuple[int, ...]
) -> tuple[float, ...]:
    """Shares of images that are right and certified beyond each radius (statement *network*).

    The network is frozen, stored in float32, its bounds are proven, and it is evaluated in float64.

    Args:
        network: in evaluation mode; left as it is.
        images: with their labels.
        radii_255: radii, l2, in units of 1/255.

    Raises:
        LipdeployError: if the network cannot be frozen, or a bound not be proven.
    """
    frozen = freeze(network).stored_as("float32")
    names = tuple(str(index) for index in range(network.architecture.classes))
    certifier = Certifier(frozen, make_manifest(frozen, names, {}, {}, {}))
    pixels = images.pixels.cpu().numpy()
    expected = images.labels.cpu().numpy()
    limits = np.array(radii_255, dtype=np.float64)  # the units of the pixels, as the radii's
    counts = np.zeros(len(limits), dtype=np.int64)
    batch = max(1, MOST_VALUES // frozen.largest_values)
    for start in range(0, len(pixels), batch):
        part = slice(start, start + batch)
        inputs = pixels[part].astype(np.float64)
        features = frozen.features(inputs)
        labels = frozen.head.logits(features).argmax(axis=1)
        radii = certifier.network_radii(Answers(inputs, features, labels))
        is_right = labels == expected[part]
        counts += np.count_nonzero(is_right[:, None] & (radii[:, None] > limits), axis=0)
    return tuple(float(count) / len(pixels) for count in counts)
