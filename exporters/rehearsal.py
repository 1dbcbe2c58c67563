"""What a network will cost once it is frozen, before it is."""

from lipdeploy.exporters.freeze import named_shapes
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.plan import Target, make_plan
from lipdeploy.training.heads import MlpHead, class_rows, orthogonal_weight
from lipdeploy.training.lipconvnet import LipConvNet


def frozen_macs(network: LipConvNet) -> dict[str, int]:
    """Multiplications an image, as `export` would plan them, by the name of the module."""
    target, cost = Target(), CostModel()
    layers = named_shapes(network)
    plan = make_plan([shape for _, shape in layers], "auto", target, cost)
    macs: dict[str, int] = {}
    for (name, shape), choice in zip(layers, plan, strict=True):
        used = cost.usage(shape, choice, target).macs // target.batch
        macs[name] = macs.get(name, 0) + used
    head = class_rows(network.head).numel()
    if isinstance(network.head, MlpHead):
        head += orthogonal_weight(network.head.hidden).numel()
    return macs | {"head": head}
