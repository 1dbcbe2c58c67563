"""Shapes of all values of a graph."""

import onnx
from onnx import TensorProto, helper, shape_inference

Shape = tuple[int, ...]


def value_shapes(model: onnx.ModelProto, inputs: dict[str, Shape]) -> dict[str, Shape]:
    """Shapes of all values for inputs of these shapes; float weights are not copied."""
    skeleton = onnx.ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    graph = skeleton.graph
    graph.name = "skeleton"
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64:
            graph.initializer.append(tensor)
        else:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    for name, shape in inputs.items():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    inferred = shape_inference.infer_shapes(skeleton, data_prop=True)
    shapes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes
