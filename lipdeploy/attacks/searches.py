"""Two attacks on images in [0, 1] in l2: the nearest other class, and another class in a ball.

Both follow the gradient of the *margin*, the logit of the class less the largest other one: an
image is broken where it is negative. Divided by the norm of its gradient it estimates the distance
to the border, exactly where the network is linear.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lipdeploy.attacks.gradients import Model

FIRST_STEP, LAST_STEP = 1.0, 0.01
"""Lengths of steps of the search for the nearest class, l2 in [0, 1] pixels."""
FIRST_CHANGE, LAST_CHANGE = 0.05, 0.001
"""Share by which its ball grows or shrinks."""
OVERSHOOT = 1.02
"""How much further than to the border, as the gradient has it, a search goes (as DeepFool does); or
it would end on the border of a network that is linear there."""
STEPS_ACROSS = 2.5
"""How many radii the steps in a ball are together, so that its border is reached from any start."""
TINY = 1e-12


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the class less the largest other one, shape (batch,)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    return own[:, 0] - others.amax(dim=1)


def minimal_norm(model: Model, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Images of other classes, as near as possible, by Fast Minimum-Norm (Pintor et al., 2021).

    Each image has a ball of its own that shrinks while the class is another one and grows while it
    is not; until one is found it reaches as far as the gradient says that the border is. Steps and
    changes of the ball become smaller along half a wave of the cosine.

    Args:
        model: see `lipdeploy.attacks.gradients`.
        images: shape (batch, 3, n, n), in [0, 1].
        labels: their classes, shape (batch,).
        steps: gradients for each image; where the last one leads is tried, too.

    Returns:
        As `images`; the image itself where nothing was found.
    """
    nearest, best = images.clone(), torch.full_like(labels, math.inf, dtype=images.dtype)
    radii, moved = best.clone(), torch.zeros_like(images)
    for step_size, change in _schedule(steps):
        margin, slope = _margins_and_slopes(model, images + moved, labels)
        nearest, best = _nearer(nearest, best, images, moved, margin)
        to_border = OVERSHOOT * (_norms(moved) + margin.abs() / (_norms(slope) + TINY))
        outward = torch.where(best < math.inf, radii * (1 + change), to_border)
        radii = torch.where(margin < 0, torch.minimum(radii * (1 - change), best), outward)
        moved = _inside(images, moved - step_size * _unit(slope), radii)
    return _nearer(nearest, best, images, moved, _margins(model, images + moved, labels))[0]


def _nearer(
    nearest: Tensor, best: Tensor, images: Tensor, moved: Tensor, margin: Tensor
) -> tuple[Tensor, Tensor]:
    """The nearest images of other classes so far and their distances, now with `moved`."""
    norms = _norms(moved)
    is_nearer = (margin < 0) & (norms < best)
    nearest = torch.where(_wide(is_nearer), images + moved, nearest)
    return nearest, torch.where(is_nearer, norms, best)


def _schedule(steps: int) -> Iterator[tuple[float, float]]:
    """Step sizes and changes of the ball, falling along half a wave of the cosine."""
    for step in range(steps):
        share = (1 + math.cos(math.pi * step / steps)) / 2
        yield (
            LAST_STEP + (FIRST_STEP - LAST_STEP) * share,
            LAST_CHANGE + (FIRST_CHANGE - LAST_CHANGE) * share,
        )


def within_ball(
    model: Model,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
    *,
    steps: int,
    restarts: int,
    seed: int,
) -> Tensor:
    """The images of balls that look most like another class, by projected gradient descent.

    From a random point of the ball, with steps of one length (Madry et al., 2018).

    Args:
        model: see `lipdeploy.attacks.gradients`.
        images: centres, shape (batch, 3, n, n), in [0, 1].
        labels: their classes, shape (batch,).
        radii: of the balls, l2, shape (batch,).
        steps: gradients for each start.
        restarts: starts for each image; one that is broken gets no more.
        seed: of the random starts.

    Returns:
        As `images`: of all that were met, the one with the smallest margin.
    """
    generator = torch.Generator().manual_seed(seed)
    worst, lowest = images.clone(), torch.full_like(radii, math.inf)
    for _ in range(restarts):
        rows = torch.nonzero(lowest >= 0)[:, 0]
        if not len(rows):
            break
        start = _random_points(images[rows], radii[rows], generator)
        found, margin = _descend(model, images[rows], labels[rows], radii[rows], start, steps)
        is_lower = margin < lowest[rows]
        worst[rows] = torch.where(_wide(is_lower), found, worst[rows])
        lowest[rows] = torch.where(is_lower, margin, lowest[rows])
    return worst


def _descend(
    model: Model, images: Tensor, labels: Tensor, radii: Tensor, moved: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """The points with the smallest margins on the way down from some start, and these margins."""
    worst, lowest = images + moved, torch.full_like(radii, math.inf)
    for _ in range(steps):
        margin, slope = _margins_and_slopes(model, images + moved, labels)
        worst, lowest = _lower(worst, lowest, images + moved, margin)
        down = _wide(STEPS_ACROSS / steps * radii) * _unit(slope)
        moved = _inside(images, moved - down, radii)
    return _lower(worst, lowest, images + moved, _margins(model, images + moved, labels))


def _lower(
    worst: Tensor, lowest: Tensor, candidates: Tensor, margin: Tensor
) -> tuple[Tensor, Tensor]:
    """The images with the smallest margins so far and these margins, now with `candidates`."""
    is_lower = margin < lowest
    worst = torch.where(_wide(is_lower), candidates, worst)
    return worst, torch.where(is_lower, margin, lowest)


def _margins(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Margins, which nobody differentiates."""
    with torch.no_grad():
        return margins(model(images), labels)


def _margins_and_slopes(model: Model, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Margins and their gradients."""
    with torch.enable_grad():
        x = images.detach().requires_grad_(True)
        margin = margins(model(x), labels)
        (slope,) = torch.autograd.grad(margin.sum(), x)
    return margin.detach(), slope


def _random_points(images: Tensor, radii: Tensor, generator: torch.Generator) -> Tensor:
    """Changes of random direction and length, up to the radii and inside of [0, 1]."""
    direction = torch.randn(images.shape, generator=generator).to(images)
    length = torch.rand(len(images), generator=generator).to(images) * radii
    return _inside(images, _wide(length) * _unit(direction), radii)


def _inside(images: Tensor, moved: Tensor, radii: Tensor) -> Tensor:
    """Changes cut to the balls, then to images in [0, 1], which makes none longer."""
    shorter = moved * _wide((radii / (_norms(moved) + TINY)).clamp(max=1))
    return (images + shorter).clamp(0, 1) - images


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = x.flatten(1).norm(dim=1)
    return norms


def _unit(x: Tensor) -> Tensor:
    return x / _wide(_norms(x) + TINY)


def _wide(x: Tensor) -> Tensor:
    """(batch,) as (batch, 1, 1, 1)."""
    return x[:, None, None, None]
