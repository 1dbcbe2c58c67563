"""Runtimes that compute less precisely than certificates assume are found, and so at the export."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import random_pixels

from lipdeploy.artifact import Engine
from lipdeploy.canary import canary_pixels, check_canary
from lipdeploy.errors import (
    ArithmeticMismatchError,
    ExportError,
)
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.exporters.parity import compare, hostile_inputs
from lipdeploy.exporters.trained import build_engine
from lipdeploy.predictor import Predictor
from lipdeploy.runtimes import Array, Pixels
from lipdeploy.runtimes.onnx import OnnxRuntime


class Rounding:
    """A stand-in that computes as the engine does, with operands of products cut to fewer bits."""

    arithmetic = "float32"
    runs_graph = True
    description = "a stand-in"

    def __init__(self, engine: Engine, bits: int) -> None:
        model = onnx.load_model_from_string(engine.prepared)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
                values = cut(onnx.numpy_helper.to_array(tensor), bits)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        self.runtime = OnnxRuntime(model.SerializeToString(), "cpu")

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        return self.runtime.run(pixels)


def cut(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers with so many significant bits, as tensor cores cut them."""
    return (values.view(np.uint32) & np.uint32(~((1 << (24 - bits)) - 1) & 0xFFFFFFFF)).view(
        np.float32
    )


@pytest.mark.parametrize("bits", [11, 8])
def test_the_canary_finds_operands_of_fewer_bits(model: Path, bits: int) -> None:
    engine = build_engine(model, ExportOptions(weights="float32"))
    check_canary(engine, OnnxRuntime(engine.prepared, "cpu"))
    with pytest.raises(ArithmeticMismatchError, match="a stand-in does not compute in float32"):
        check_canary(engine, Rounding(engine, bits))


def half_sums(engine: Engine) -> OnnxRuntime:
    """The engine with the result of every product rounded to float16."""
    model = onnx.load_model_from_string(engine.prepared)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "MatMul":
            nodes.append(node)
            continue
        (name,) = node.output
        node.output[0] = f"{name}.sum"
        half = onnx.helper.make_node("Cast", [f"{name}.sum"], [f"{name}.half"], to=10)
        nodes += [node, half, onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=1)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return OnnxRuntime(model.SerializeToString(), "cpu")


def test_the_canary_finds_sums_in_half_precision(engine: Engine) -> None:
    with pytest.raises(ArithmeticMismatchError, match="differ from float64"):
        check_canary(engine, half_sums(engine))


def test_a_canary_in_the_file_cannot_allow_more_than_is_proven(engine: Engine) -> None:
    generous = replace(engine, manifest=replace(engine.manifest, canary=1e9))
    with pytest.raises(ArithmeticMismatchError):
        check_canary(generous, Rounding(generous, 8))


def test_torch_is_not_believed_an_order_of_sums(model: Path) -> None:
    ordered = build_engine(model, ExportOptions(accumulation="same-order"))
    with Predictor(ordered, runtime="torch") as predictor:
        assert predictor.guarantee == "network"
    with Predictor(ordered) as predictor:
        assert predictor.guarantee == "program"


def test_without_a_measured_canary_the_proven_bound_decides(engine: Engine) -> None:
    bare = replace(engine, manifest=replace(engine.manifest, canary=0.0))
    check_canary(bare, OnnxRuntime(bare.prepared, "cpu"))
    with pytest.raises(ArithmeticMismatchError):
        check_canary(bare, Rounding(bare, 8))


def test_the_canary_looks_before_anything_is_certified(engine: Engine) -> None:
    lying = replace(engine, prepared=_with_wrong_bias(engine.prepared))
    with pytest.raises(ArithmeticMismatchError):
        Predictor(lying)
    with Predictor(lying, certify=False) as predictor:
        list(predictor([random_pixels(1, 8)[0].astype(np.uint8).transpose(1, 2, 0)]))


def _with_wrong_bias(data: bytes) -> bytes:
    model = onnx.load_model_from_string(data)
    (tensor,) = [t for t in model.graph.initializer if t.name.startswith("layer0.bias")][:1]
    values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return bytes(model.SerializeToString())


def test_canary_images_are_whole_numbers_of_the_pixel_range() -> None:
    pixels = canary_pixels(9)
    assert pixels.shape == (4, 3, 9, 9)
    assert np.array_equal(pixels, pixels.round())
    assert pixels.min() >= 0
    assert pixels.max() <= 255


def test_the_gate_at_the_export_holds_for_inputs_that_are_no_images(engine: Engine) -> None:
    pixels = hostile_inputs(8)
    parity = compare(engine.network, engine.manifest, OnnxRuntime(engine.prepared, "cpu"), pixels)
    assert 0 < parity.share_of_bound < 1
    with pytest.raises(ExportError, match="proven for float32"):
        compare(engine.network, engine.manifest, half_sums(engine), random_pixels(8, 8))
