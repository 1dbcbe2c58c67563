"""Model files and engines that are damaged, foreign or hostile: each is refused in one line."""

import io
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import assert_one_line
from onnx import helper

from lipdeploy.artifact import MANIFEST_KEY, Manifest
from lipdeploy.exporters.onnx_file import stored_weights

Cli = Callable[..., tuple[int, str, str]]


class Hostile:
    """Unpickled with Python's own unpickler, it would leave a file behind."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("this-must-never-exist",))


def changed_state(workshop: Path, change: Callable[[dict[str, object]], None]) -> bytes:
    content = torch.load(workshop / "model.pt", weights_only=True)
    change(content)
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def poison(value: float) -> Callable[[dict[str, object]], None]:
    def change(content: dict[str, object]) -> None:
        content["state"]["head.linear.bias"][0] = value

    return change


def changed_graph(workshop: Path, change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load(workshop / "model.onnx")
    change(model)
    return bytes(model.SerializeToString())


def foreign_onnx() -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", 1, [1])], [value("y", 1, [1])]
    )
    return bytes(helper.make_model(graph).SerializeToString())


def kept_outside(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return change


def other_weight(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def other_operation(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Max")
    node.op_type = "Min"


def one_more_node(model: onnx.ModelProto) -> None:
    """A loop that would never end, if anybody ran it."""
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=model.graph))


def a_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("", "Max", ["a", "b"], ["c"], [], []))


def many_empty_nodes(model: onnx.ModelProto) -> None:
    """Two bytes each in the file, a hundred in memory."""
    model.graph.ClearField("node")
    model.graph.MergeFromString(b"\x0a\x00" * 200_000)


def much_text(model: onnx.ModelProto) -> None:
    model.graph.node[0].doc_string = "x" * (9 << 20)


def long_manifest(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value += " " * (2 << 20)


def deep_manifest(model: onnx.ModelProto) -> None:
    values = json.loads(model.metadata_props[0].value)
    for _ in range(500):
        values["source"] = {"a": values["source"]}
    helper.set_model_props(model, {MANIFEST_KEY: json.dumps(values)})


def large_bound(model: onnx.ModelProto) -> None:
    values = json.loads(model.metadata_props[0].value) | {"lipschitz_upper": 10**400}
    helper.set_model_props(model, {MANIFEST_KEY: json.dumps(values)})


def not_a_number(model: onnx.ModelProto) -> None:
    """In a weight, with a hash that is right again."""
    tensor = next(t for t in model.graph.initializer if t.name == "head.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), tensor.name))
    manifest = Manifest.from_json(model.metadata_props[0].value)
    manifest = replace(manifest, sha256=manifest.digest(stored_weights(model)))
    helper.set_model_props(model, {MANIFEST_KEY: manifest.to_json()})


def less_bound(model: onnx.ModelProto) -> None:
    values = json.loads(model.metadata_props[0].value)
    values["lipschitz_upper"] /= 100
    helper.set_model_props(model, {MANIFEST_KEY: json.dumps(values)})


MODEL_FILES: list[tuple[str, Callable[[Path], bytes | None], str]] = [
    ("missing.onnx", lambda w: None, "no such file; expected an engine"),
    ("missing.pt", lambda w: None, "no such file; expected a"),
    ("empty.onnx", lambda w: b"", "an empty file; make one with 'lipdeploy export'"),
    ("empty.pt", lambda w: b"", "not a lipdeploy-model.*train again"),
    ("text.onnx", lambda w: b"hello, I am text", "not an engine .an ONNX file.*make one with"),
    ("text.pt", lambda w: b"hello, I am text", "not a lipdeploy-model.*train again"),
    (
        "cut.onnx",
        lambda w: (w / "model.onnx").read_bytes()[:-500],
        "or a damaged one; make one with",
    ),
    ("cut.pt", lambda w: (w / "model.pt").read_bytes()[:-500], "damaged one.*train again"),
    ("pickle.pt", lambda w: pickle.dumps(Hostile()), "not a lipdeploy-model"),
    (
        "code.pt",
        lambda w: changed_state(w, lambda c: c.update(card=Hostile())),
        "not a lipdeploy-model",
    ),
    ("foreign.onnx", lambda w: foreign_onnx(), "not one of lipdeploy; make one with"),
    ("nan.pt", lambda w: changed_state(w, poison(np.nan)), "NaN or infinite; train again"),
    ("infinite.pt", lambda w: changed_state(w, poison(np.inf)), "NaN or infinite; train again"),
    (
        "external.onnx",
        lambda w: changed_graph(w, kept_outside("weights.bin")),
        "weights in other files, which lipdeploy never reads",
    ),
    (
        "climbing.onnx",
        lambda w: changed_graph(w, kept_outside("../../etc/passwd")),
        "weights in other files, which lipdeploy never reads",
    ),
    (
        "empty-nodes.onnx",
        lambda w: changed_graph(w, many_empty_nodes),
        "not an engine .an ONNX file., or a damaged one",
    ),
    ("structure.onnx", lambda w: changed_graph(w, much_text), "more structure than weights"),
    ("manifest.onnx", lambda w: changed_graph(w, long_manifest), "a manifest of 2 MiB"),
    ("deep.onnx", lambda w: changed_graph(w, deep_manifest), "nested too deeply"),
    ("large-bound.onnx", lambda w: changed_graph(w, large_bound), "the manifest is damaged"),
    (
        "nan.onnx",
        lambda w: changed_graph(w, not_a_number),
        "head.bias: NaN or infinite weights; export",
    ),
    ("weight.onnx", lambda w: changed_graph(w, other_weight), "do not belong together: export the"),
    ("bound.onnx", lambda w: changed_graph(w, less_bound), "do not belong together: export the"),
    ("operation.onnx", lambda w: changed_graph(w, other_operation), "runs other operations"),
    ("loop.onnx", lambda w: changed_graph(w, one_more_node), "runs other operations"),
    ("function.onnx", lambda w: changed_graph(w, a_function), "runs other operations"),
]


@pytest.mark.parametrize(
    ("name", "make", "message"), MODEL_FILES, ids=[row[0] for row in MODEL_FILES]
)
@pytest.mark.parametrize("command", ["use", "inspect", "evaluate"])
def test_model_files_that_are_refused(
    run_cli: Cli,
    workshop: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    name: str,
    make: Callable[[Path], bytes | None],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    data, path = make(workshop), tmp_path / name
    if data is not None:
        path.write_bytes(data)
    use = ["export", path] if path.suffix == ".pt" else ["predict", image_folder, "--model", path]
    commands = {
        "use": use,
        "inspect": ["inspect", path],
        "evaluate": ["evaluate", path, image_folder],
    }
    assert_one_line(*run_cli(*commands[command]), 1, message)
    assert not (tmp_path / "this-must-never-exist").exists()


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("export", "model.onnx", "an engine already; type 'lipdeploy predict IMAGE --model {}'"),
        ("export", "cat-0000.jpg", "an image, not a model; .* type 'lipdeploy predict {}'"),
        ("inspect", "cat-0000.jpg", "an image, not a model; .* type 'lipdeploy predict {}'"),
    ],
)
def test_files_that_belong_to_another_command_name_it(
    run_cli: Cli, source: Path, command: str, name: str, message: str
) -> None:
    path = source / "samples" / name
    assert_one_line(*run_cli(command, path), 1, message.format(re.escape(str(path))))


ENGINES = [row[:2] for row in MODEL_FILES if row[0].endswith(".onnx")]


@pytest.mark.parametrize(("name", "make"), ENGINES, ids=[row[0] for row in ENGINES])
def test_engines_that_are_refused_fail_verification(
    run_cli: Cli,
    workshop: Path,
    tmp_path: Path,
    name: str,
    make: Callable[[Path], bytes | None],
) -> None:
    data, path = make(workshop), tmp_path / name
    if data is not None:
        path.write_bytes(data)
    status, output, errors = run_cli("verify", path)
    assert status == 1
    assert errors.startswith(f"do not use {path}: ")
    assert errors.count("\n") == 1
    assert "FAILED" in output.splitlines()[-2] + output.splitlines()[-1]
    assert "train" not in output
