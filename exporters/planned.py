"""A plan on a real network: what each layer costs, and how precise it is."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from lipdeploy.engine_error import ErrorAnalysis
from lipdeploy.errors import BoundError, ExportError
from lipdeploy.exporters.forms import SPECTRAL_FORMS, with_choice
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.plan import Choice, Cost, FormChoice, LayerShape, Target, candidates
from lipdeploy.frozen import FrozenNetwork, Linear
from lipdeploy.spectral import Spectral


@dataclass(frozen=True)
class PlannedLayer:
    """One line of a plan.

    Attributes:
        shape: of the layer.
        choice: how it is evaluated.
        macs: multiplications an image.
        parameter_bytes: of its weights as they are stored.
        engine_bytes: of the constants that its products read.
        seconds: for a batch of the target, by the cost model or measured.
        norm_upper: upper bound of its norm.
        error_share: its share of the rounding error of the features.
    """

    shape: LayerShape
    choice: Choice
    macs: int
    parameter_bytes: int
    engine_bytes: int
    seconds: float
    norm_upper: float
    error_share: float


def planned_layers(
    network: FrozenNetwork,
    shapes: Sequence[LayerShape],
    plan: Sequence[Choice],
    target: Target,
    distance: float,
    cost: Cost,
) -> tuple[PlannedLayer, ...]:
    """The lines of a plan.

    Args:
        network: what was planned.
        shapes: of its linear layers.
        plan: how each is evaluated.
        target: what for.
        distance: from the centre, in pixels of 0 ... 255, where errors are compared.
        cost: what the plan was made with.
    """
    model = CostModel()
    shares = ErrorAnalysis(network).shares(target.rounding, distance)
    lines = []
    for shape, choice, layer, share in zip(shapes, plan, network.linear(), shares, strict=True):
        used = model.usage(shape, choice, target)
        stored = sum(array.nbytes for array in layer.operator.weights().values())
        macs, seconds = used.macs // target.batch, cost(shape, choice, target)
        norm = layer.operator.norm_upper
        lines.append(
            PlannedLayer(shape, choice, macs, stored, used.weight_bytes, seconds, norm, share)
        )
    return tuple(lines)


def rounding_loss(network: FrozenNetwork, target: Target, distance: float) -> float:
    """What rounding takes of a radius at a distance from the centre; l2 in pixels of 0 ... 255."""
    error = ErrorAnalysis(network).errors(target.rounding).features(np.array([distance]))
    return 2 * float(error[0]) / network.lipschitz_upper


SUMS = (None, 1024, 512, 256, 128, 64, 32, 16, 8)
"""Limits of sums that are tried, the fastest first."""


def longest_sums(network: FrozenNetwork, target: Target, distance: float, limit: float) -> Target:
    """The target with the longest sums that cost at most `limit`; else with the shortest."""
    for block in SUMS:
        target = replace(target, rounding=replace(target.rounding, block=block))
        with suppress(BoundError):  # sums too long for the model of the arithmetic
            if rounding_loss(network, target, distance) <= limit:
                break
    return target


def within_loss(
    network: FrozenNetwork,
    plan: Sequence[Choice],
    shapes: Sequence[LayerShape],
    form: FormChoice,
    target: Target,
    distance: float,
    limit: float,
) -> tuple[FrozenNetwork, tuple[Choice, ...]]:
    """The network and plan, with as few layers as needed in their most precise form.

    Layers are changed in the order of their share of the error.

    Raises:
        ExportError: if rounding takes more than `limit` (pixels of 0 ... 255) all the same.
    """
    chosen = list(plan)
    shares = ErrorAnalysis(network).shares(target.rounding, distance)
    loss = rounding_loss(network, target, distance)
    for index in np.argsort(shares)[::-1]:
        if loss <= limit:
            break
        layer = list(network.linear())[index]
        options = {chosen[index]: layer.operator}
        for choice in candidates(shapes[index], form):
            # How blocks are multiplied changes no sum.
            is_like = choice.products == chosen[index].products
            if is_like and choice.form in SPECTRAL_FORMS and isinstance(layer.operator, Spectral):
                options[choice] = with_choice(layer.operator, choice)
        chosen[index] = min(options, key=lambda c: options[c].step(target.rounding).rounding_upper)
        network = _with_operator(network, index, replace(layer, operator=options[chosen[index]]))
        loss = rounding_loss(network, target, distance)
    if loss > limit:
        raise ExportError(
            f"--max-rounding-loss: rounding takes up to {loss:.3g}/255 of a radius in the most "
            f"precise forms, limit {limit:.3g}/255; use --accumulation blocked without "
            "--longest-sum, or a larger limit"
        )
    return network, tuple(chosen)


def _with_operator(network: FrozenNetwork, index: int, layer: Linear) -> FrozenNetwork:
    """The network with its linear layer number `index` replaced."""
    places = [i for i, op in enumerate(network.operations) if isinstance(op, Linear)]
    operations = list(network.operations)
    operations[places[index]] = layer
    return replace(network, operations=tuple(operations))
