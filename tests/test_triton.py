"""Model repositories for Triton: what is in them, the schema of their configuration, replacing."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from helpers import make_network

from lipdeploy.arithmetic import FLOAT32
from lipdeploy.artifact import Engine, make_manifest
from lipdeploy.errors import ExportError, LipdeployError, OutputError, UsageError
from lipdeploy.exporters import triton
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx, served_bytes
from lipdeploy.exporters.triton import Platform, write_triton
from lipdeploy.rounding import Accumulation, Rounding

CLASSES = ("ant", 'b"ee', "c: öw")
FILES: dict[Platform, str] = {
    "onnxruntime_onnx": "model.onnx",
    "tensorrt_plan": "model.plan",
}
TYPE_FP32 = 11

SCHEMA: dict[str, dict[str, tuple[int, str]]] = {
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "repeated ModelInput"),
        "output": (6, "repeated ModelOutput"),
        "default_model_filename": (8, "string"),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "optimization": (12, "ModelOptimizationPolicy"),
        "parameters": (14, "repeated ParametersEntry"),
        "backend": (17, "string"),
    },
    "ModelInput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (4, "repeated int64"),
        "reshape": (5, "ModelTensorReshape"),
    },
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, "repeated int64"),
        "label_filename": (4, "string"),
        "reshape": (5, "ModelTensorReshape"),
    },
    "ModelTensorReshape": {"shape": (1, "repeated int64")},
    "ModelDynamicBatching": {"preferred_batch_size": (1, "repeated int32")},
    "ModelOptimizationPolicy": {
        "graph": (1, "Graph"),
        "execution_accelerators": (4, "ExecutionAccelerators"),
    },
    "Graph": {"level": (1, "int32")},
    "ExecutionAccelerators": {"gpu_execution_accelerator": (1, "repeated Accelerator")},
    "Accelerator": {"name": (1, "string"), "parameters": (2, "repeated OptionsEntry")},
    "OptionsEntry": {"key": (1, "string"), "value": (2, "string")},
    "ParametersEntry": {"key": (1, "string"), "value": (2, "ModelParameter")},
    "ModelParameter": {"string_value": (1, "string")},
}
"""The part of model_config.proto of triton-inference-server/common that is used: numbers and types.

protobuf's own parser refuses everything else. Maps are written as what they are, lists of entries.
"""


def schema() -> Any:
    """The class ModelConfig of `SCHEMA`."""
    field_types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="lipdeploy_triton.proto", package="used")
    file.syntax = "proto3"
    enum = file.enum_type.add(name="DataType")
    enum.value.add(name="TYPE_INVALID", number=0)
    enum.value.add(name="TYPE_FP32", number=TYPE_FP32)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field_name, (number, described) in fields.items():
            field = message.field.add(name=field_name, number=number)
            field.label = field_types.LABEL_OPTIONAL
            if described.startswith("repeated "):
                field.label = field_types.LABEL_REPEATED
            kind = described.removeprefix("repeated ")
            if kind in SCHEMA or kind == "DataType":
                field.type = field_types.TYPE_MESSAGE if kind in SCHEMA else field_types.TYPE_ENUM
                field.type_name = f".used.{kind}"
            else:
                field.type = getattr(field_types, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("used.ModelConfig"))


def published() -> Any:
    """ModelConfig as Triton's client package brings it; without its dependencies."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.origin is None:
        pytest.skip("pip install tritonclient checks against the published schema")
    path = Path(package.origin).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig  # type: ignore[attr-defined]


def parsed(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema()())


def make_engine(accumulation: Accumulation = "blocked", head: str = "lln") -> Engine:
    network = freeze(make_network(head=head)).stored_as("float16")
    rounding = Rounding.of_graph(FLOAT32, accumulation)
    versions = {"lipdeploy": "test"}
    manifest = make_manifest(network, CLASSES, {"size": 8}, {}, versions, rounding)
    return parse_onnx(onnx_bytes(network, manifest), "test")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


def write(
    engine: Engine, folder: Path, platform: Platform = "onnxruntime_onnx", **changes: Any
) -> Path:
    file = served_bytes(engine) if platform == "onnxruntime_onnx" else b"what a backend loads"
    arguments = {"name": "ants", "platform": platform, "file": file, "file_name": FILES[platform]}
    return write_triton(engine, folder, **(arguments | changes))


@pytest.mark.parametrize("platform", FILES)
def test_a_repository_holds_the_model_its_labels_and_its_configuration(
    engine: Engine, tmp_path: Path, platform: Platform
) -> None:
    folder = write(engine, tmp_path / "models", platform)
    assert folder == tmp_path / "models" / "ants"
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    names = ["config.pbtxt", "labels.txt", f"1/{FILES[platform]}"]
    assert found == {f"models/ants/{name}" for name in names}
    assert (folder / "labels.txt").read_text().splitlines() == list(CLASSES)
    config = parsed(folder)
    assert (config.platform, config.backend) == (platform, "")
    assert (config.name, config.max_batch_size) == ("ants", 256)
    assert config.default_model_filename == FILES[platform]
    assert config.HasField("dynamic_batching")


def test_the_configuration_is_that_of_the_graph(engine: Engine, tmp_path: Path) -> None:
    """Names, types and shapes, with the batch in front, as the backend compares them."""
    config = parsed(write(engine, tmp_path, max_batch=7))
    graph = onnx.load(tmp_path / "ants" / "1" / "model.onnx").graph
    assert config.max_batch_size == 7
    for described, real in ((config.input, graph.input), (config.output, graph.output)):
        assert [value.name for value in described] == [value.name for value in real]
        for value, other in zip(described, real, strict=True):
            shape = other.type.tensor_type.shape.dim
            inner = value.reshape.shape if value.HasField("reshape") else value.dims
            assert list(inner) == [dim.dim_value for dim in shape[1:]]
            assert shape[0].dim_param == "batch"
            assert other.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
            assert value.data_type == TYPE_FP32
            # Triton's own rules: a dimension at least, and as many numbers as without a reshape.
            assert len(value.dims) > 0
            assert np.prod(value.dims) == np.prod(list(inner))
    labels = {output.name: output.label_filename for output in config.output}
    assert labels == {"features": "", "logits": "labels.txt", "radius": ""}


def test_onnx_runtime_keeps_the_graph_and_full_precision(engine: Engine, tmp_path: Path) -> None:
    optimization = parsed(write(engine, tmp_path)).optimization
    assert optimization.graph.level == 2
    (accelerator,) = optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert [(entry.key, entry.value) for entry in accelerator.parameters] == [("use_tf32", "0")]


@pytest.mark.parametrize("platform", FILES)
def test_the_published_schema_takes_the_configuration(
    engine: Engine, tmp_path: Path, platform: Platform
) -> None:
    config = text_format.Parse(
        (write(engine, tmp_path, platform) / "config.pbtxt").read_text(), published()()
    )
    assert [output.name for output in config.output] == ["features", "logits", "radius"]
    assert config.optimization.graph.level == (2 if platform == "onnxruntime_onnx" else 0)


def test_the_part_of_the_schema_that_is_used_is_that_of_the_published_one() -> None:
    def compare(used: Any, whole: Any) -> None:
        for field in used.fields:
            other = whole.fields_by_name[field.name]
            kinds = [(f.number, f.type, f.is_repeated) for f in (field, other)]
            assert kinds[0] == kinds[1], field.full_name
            if field.message_type:
                compare(field.message_type, other.message_type)
            if field.enum_type:
                assert other.enum_type.values_by_name["TYPE_FP32"].number == TYPE_FP32

    compare(schema().DESCRIPTOR, published().DESCRIPTOR)


@pytest.mark.parametrize(
    ("platform", "accumulation", "head", "expected"),
    [
        ("onnxruntime_onnx", "blocked", "lln", ["Graph level 2", "the graph keeps them short"]),
        ("onnxruntime_onnx", "same-order", "lln", ["On the server that order is not tested"]),
        ("onnxruntime_onnx", "blocked", "mlp", ["softplus s in the engine is accurate"]),
        ("tensorrt_plan", "blocked", "lln", ["without TF32. Nothing checks that"]),
    ],
)
def test_the_configuration_says_what_the_radius_rests_on(
    tmp_path: Path, platform: Platform, accumulation: Accumulation, head: str, expected: list[str]
) -> None:
    engine = make_engine(accumulation, head)
    text = (write(engine, tmp_path, platform) / "config.pbtxt").read_text()
    comment = " ".join(line[2:] for line in text.splitlines() if line.startswith("#"))
    assert "the engine runs its graph as it is, in IEEE 754 float32" in comment
    assert engine.sha256 in comment
    for part in expected:
        assert part in comment


def test_an_older_model_of_ours_is_replaced_as_a_whole(engine: Engine, tmp_path: Path) -> None:
    write(engine, tmp_path, "tensorrt_plan")
    assert [path.name for path in (tmp_path / "ants" / "1").iterdir()] == ["model.plan"]
    write(engine, tmp_path)
    assert [path.name for path in (tmp_path / "ants" / "1").iterdir()] == ["model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["ants"]


@pytest.mark.parametrize("kind", ["a file", "an empty folder", "foreign", "more files"])
def test_what_is_not_ours_is_left_alone(engine: Engine, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "ants"
    if kind == "a file":
        target.write_text("hello")
    elif kind == "more files":
        write(engine, tmp_path)
        (target / "2").mkdir()
    else:
        target.mkdir()
        if kind == "foreign":
            (target / "config.pbtxt").write_text('name: "ants"\n')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="ants: is there and not, or not only, from lipdeploy"):
        write(engine, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_cannot_be_put_in_place_leaves_the_old_one(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine, tmp_path, "tensorrt_plan")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match=r"ants: cannot be written \(No space left on device\)"):
        write(engine, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ants"]
    assert (tmp_path / "ants" / "1" / "model.plan").read_bytes() == b"what a backend loads"
    assert parsed(tmp_path / "ants").platform == "tensorrt_plan"


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"name": "../ants"}, UsageError, "'../ants' is no name for a model"),
        ({"name": ""}, UsageError, "is no name"),
        ({"name": ".ants"}, UsageError, "is no name"),
        ({"name": 'an"ts'}, UsageError, "is no name"),
        ({"file_name": "2/model.onnx"}, UsageError, "'2/model.onnx' is no name"),
        ({"max_batch": 0}, UsageError, "batches of 0 images; expected at least 1"),
        ({"file": b"another model"}, ExportError, "not those of the engine"),
    ],
    ids=str,
)
def test_wrong_arguments_write_nothing(
    engine: Engine,
    tmp_path: Path,
    changes: dict[str, Any],
    kind: type[LipdeployError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        write(engine, tmp_path / "models", **changes)
    assert not (tmp_path / "models").exists()


def test_the_stored_bytes_are_served_as_well_as_the_prepared_ones(
    engine: Engine, tmp_path: Path
) -> None:
    folder = write(engine, tmp_path, file=engine.data)
    assert (folder / "1" / "model.onnx").read_bytes() == engine.data
    assert (folder / "config.pbtxt").read_text().startswith(triton.MARK)
