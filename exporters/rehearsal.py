"""What a network will cost once it is frozen, before it is."""

from lipdeploy.exporters.freeze import layer_shapes
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.plan import Target, make_plan
from lipdeploy.training.heads import MlpHead, class_rows, orthogonal_weight
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.soc import SkewOrthogonalConvolution


def frozen_macs(network: LipConvNet) -> dict[str, int]:
    """Multiplications an image, as `export` would plan them, by the name of the module."""
    target, cost = Target(), CostModel()
    shapes = layer_shapes(network)
    plan = make_plan(shapes, "auto", target, cost)
    modules = network.body.named_children()
    names = [n for n, module in modules if isinstance(module, SkewOrthogonalConvolution)]
    macs = {
        f"body.{name}": cost.usage(shape, choice, target).macs // target.batch
        for name, shape, choice in zip(names, shapes, plan, strict=True)
    }
    head = class_rows(network.head).numel()
    if isinstance(network.head, MlpHead):
        head += orthogonal_weight(network.head.hidden).numel()
    return macs | {"head": head}
