"""AutoAttack (Croce & Hein, 2020), of the package pyautoattack.

Auto-PGD on the cross-entropy and on targets, the targeted FAB attack, and Square, which needs no
gradients: about 7,000 evaluations of the network an image.
"""

import sys

import torch
from torch import Tensor

from lipdeploy.attacks.gradients import Model
from lipdeploy.errors import EngineError

NAME = "AutoAttack"
TARGETS = 9
"""Classes that its targeted attacks try, as published, or all others where they are fewer."""
FEWEST_CLASSES = 4
"""Below that its targeted loss is not defined, and FAB without targets takes their place."""


def check_auto_attack() -> None:
    """Raise EngineError where the package is missing, before any work."""
    try:
        import pyautoattack  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "--auto-attack needs pyautoattack; pip install 'lipdeploy[attack]', or leave out "
            "--auto-attack"
        ) from error


def auto_attack(
    model: Model, images: Tensor, labels: Tensor, radius: float, *, classes: int, seed: int
) -> Tensor:
    """Images of other classes in l2 balls around `images`.

    Args:
        model: see `lipdeploy.attacks.gradients`.
        images: shape (batch, 3, n, n), in [0, 1].
        labels: their classes, shape (batch,).
        radius: of all balls.
        classes: how many there are.
        seed: of its random choices.

    Returns:
        As `images`; the image itself where nothing was found.
    """
    from pyautoattack import AutoAttack

    is_standard = classes >= FEWEST_CLASSES
    attack = AutoAttack(
        model,
        norm="L2",
        eps=radius,
        seed=seed,
        device=images.device,
        version="standard" if is_standard else "custom",
        attacks=None if is_standard else ["apgd-ce", "fab", "square"],
    )
    for part in (attack.apgd_targeted, attack.fab):
        part.n_target_classes = min(TARGETS, classes - 1)
    # It seeds the generators of the process and traces a call of the model; both are put back.
    trace, devices = sys.gettrace(), [images.device] if images.is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            found: Tensor = attack.run_standard_evaluation(images, labels)[0]
    finally:
        sys.settrace(trace)
    return found.detach()
