"""How far accuracies would differ on other images of the same kind: bootstrap intervals.

Resample the images with replacement as often as `RESAMPLES`, compute the share each time, take the
middle 95 % (percentile bootstrap; Efron & Tibshirani, 1993). Nobody needs to draw images for that:
how many of n resampled images count is binomial where the share is a mean of zeros and ones, and
multinomial where pairs of them are compared, so drawing those numbers is the same thing.

Such an interval speaks of images drawn like these, not of other cameras or of an attacker. Where
all images agree it is a point: then there are too few images, and the share is not certain.
"""

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0

Interval = tuple[float, float]

METHOD = {
    "level": LEVEL,
    "method": "percentile bootstrap over images",
    "resamples": RESAMPLES,
    "seed": SEED,
}
"""What intervals are, for the record."""


def share_interval(count: int, total: int) -> Interval:
    """Interval of a share.

    Args:
        count: images that count.
        total: all images, at least 1.
    """
    drawn = np.random.default_rng(SEED).binomial(total, count / total, RESAMPLES)
    return _middle(drawn / total)


def difference_interval(only_this: int, only_other: int, total: int) -> Interval:
    """Interval of the difference of two shares on the same images.

    Args:
        only_this: images that count here and not there.
        only_other: images that count there and not here.
        total: all images, at least 1.
    """
    shares = np.array([only_this, only_other, total - only_this - only_other]) / total
    drawn = np.random.default_rng(SEED).multinomial(total, shares, RESAMPLES)
    return _middle((drawn[:, 0] - drawn[:, 1]) / total)


def _middle(values: NDArray[np.float64]) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, (tail, 1 - tail)).tolist()
    return low, high
