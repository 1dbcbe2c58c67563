"""`lipdeploy verify`: what it accepts, and every way of tampering that it must name."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import make_network
from onnx import helper, numpy_helper
from soundness.mutations import _truncated_outputs

from lipdeploy.arithmetic import FLOAT32, FLOAT64, TF32
from lipdeploy.artifact import MANIFEST_KEY, Manifest, make_manifest
from lipdeploy.directed import CLAIM, AffineBound
from lipdeploy.errors import BoundError, EngineError
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.onnx_file import onnx_bytes, stored_weights
from lipdeploy.exporters.verify import verify
from lipdeploy.images import PREPROCESSING
from lipdeploy.rounding import ACCUMULATIONS, Accumulation, Rounding
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.verification import Check, exact_errors

CLASSES = ("cat", "dog", "owl")
Tamper = Callable[[onnx.ModelProto], None]


def write(
    path: Path, accumulation: Accumulation = "blocked", form: str = "auto", **shape: object
) -> Path:
    network = freeze(make_network(**shape), form).stored_as("float32")
    preprocessing = {"size": network.image_size, **PREPROCESSING}
    manifest = make_manifest(
        network, CLASSES, preprocessing, {}, {}, Rounding.of_graph(FLOAT32, accumulation)
    )
    path.write_bytes(onnx_bytes(network, manifest))
    return path


def failures(path: Path) -> dict[str, list[str]]:
    """Names of the checks that failed, by verdict."""
    failed = [check for check in verify(path) if check.passed is False]
    return {
        verdict: [check.name for check in failed if check.verdict == verdict]
        for verdict in ("integrity", "soundness")
    }


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize(
    "shape",
    [
        {"head": "lln"},
        {"head": "mlp"},
        {"head": "linear", "padding": "zero", "form": "taylor"},
        {"head": "linear", "padding": "zero", "form": "dense"},
    ],
    ids=["spectral", "mlp", "taylor", "dense"],
)
def test_what_export_writes_passes(
    tmp_path: Path, accumulation: Accumulation, shape: dict[str, object]
) -> None:
    path = write(tmp_path / "model.onnx", accumulation, **shape)
    checks = list(verify(path))
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    names = {check.name for check in checks}
    assert {"hash", "graph", "executed graph", "arithmetic", "Lipschitz bound"} <= names
    assert ("order of sums" in names) == (accumulation == "same-order")
    assert ("curvature of the head" in names) == (shape["head"] == "mlp")


def test_the_bundled_engine_passes(
    source: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, err = run_cli("verify", str(source / "samples/model.onnx"))
    assert status == 0, out + err
    assert out.splitlines()[-2:] == ["integrity: passed", "soundness: passed"]


def tampered(path: Path, change: Tamper, *, rehash: bool = False) -> Path:
    """Change a file; with `rehash` as somebody would who knows how the hash is made."""
    model = onnx.load(str(path))
    change(model)
    if rehash:
        manifest = Manifest.from_json(properties(model).value)
        digest = manifest.digest(stored_weights(model))
        edit_manifest(model, lambda values: values.update(sha256=digest))
    path.write_bytes(model.SerializeToString())
    return path


def properties(model: onnx.ModelProto) -> onnx.StringStringEntryProto:
    (entry,) = (entry for entry in model.metadata_props if entry.key == MANIFEST_KEY)
    return entry


def edit_manifest(model: onnx.ModelProto, change: Callable[[dict], object]) -> None:
    entry = properties(model)
    values = json.loads(entry.value)
    change(values)
    entry.value = json.dumps(values)


def edit_weight(
    model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    changed = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), name))


def one_ulp(weights: np.ndarray) -> np.ndarray:
    weights.flat[0] = np.nextafter(weights.flat[0], np.float32(np.inf))
    return weights


def lower_lipschitz(model: onnx.ModelProto) -> None:
    def change(values: dict) -> None:
        values["lipschitz_upper"] *= 0.999

    edit_manifest(model, change)


def lower_layer(model: onnx.ModelProto) -> None:
    def change(values: dict) -> None:
        values["layers"][1]["norm_upper"] *= 0.9999

    edit_manifest(model, change)


def lower_errors(model: onnx.ModelProto) -> None:
    def change(values: dict) -> None:
        values["errors"]["float32 blocked"]["features"]["slope"] *= 0.99

    edit_manifest(model, change)


def tf32_with_the_errors_of_float32(model: onnx.ModelProto) -> None:
    def change(values: dict) -> None:
        values["arithmetic"], values["guarantee"] = "tf32", "network"
        values["errors"]["tf32 blocked"] = values["errors"].pop("float32 blocked")

    edit_manifest(model, change)


def float64_with_honest_errors(model: onnx.ModelProto) -> None:
    """The graph computes in float32, whatever it says."""
    network = freeze(make_network()).stored_as("float32")
    errors = asdict(exact_errors(network, Rounding.of_graph(FLOAT64, "blocked")).times(CLAIM))

    def change(values: dict) -> None:
        values["arithmetic"] = "float64"
        values["errors"]["float64 blocked"] = errors

    edit_manifest(model, change)


def biases_in_float64(model: onnx.ModelProto) -> None:
    edit_weight(model, "layer0.bias", lambda bias: bias.astype(np.float64) * (1 + 2.0**-30))


def swap_classes(model: onnx.ModelProto) -> None:
    edit_manifest(model, lambda values: values["classes"].reverse())


def remove_a_row_of_the_head(model: onnx.ModelProto) -> None:
    for name in ("head.weight", "head.bias"):
        edit_weight(model, name, lambda w: w[:-1])


def remove_a_rival_from_the_radius(model: onnx.ModelProto) -> None:
    def change(table: np.ndarray) -> np.ndarray:
        table[:, -1] = table.max()
        return table

    edit_weight(model, "radius.own", change)


def add_a_node(model: onnx.ModelProto) -> None:
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "logits_before"
    model.graph.node.append(helper.make_node("Identity", ["logits_before"], ["logits"], name="x"))


@pytest.mark.parametrize(
    ("change", "rehash", "verdict", "name"),
    [
        (lambda m: edit_weight(m, "layer0.bias", one_ulp), False, "integrity", "hash"),
        (lambda m: edit_weight(m, "head.weight", one_ulp), False, "integrity", "hash"),
        (lower_lipschitz, False, "integrity", "hash"),
        (lower_lipschitz, True, "soundness", "Lipschitz bound"),
        (lower_layer, True, "soundness", "norm of layer 1 (fused)"),
        (lower_errors, True, "soundness", "rounding errors, float32 blocked"),
        (tf32_with_the_errors_of_float32, True, "soundness", "rounding errors, tf32 blocked"),
        (float64_with_honest_errors, True, "soundness", "declared arithmetic"),
        (biases_in_float64, True, "integrity", "manifest and network"),
        (swap_classes, False, "integrity", "hash"),
        (remove_a_row_of_the_head, True, "integrity", "classes"),
        (remove_a_rival_from_the_radius, True, "soundness", "graph"),
        (add_a_node, True, "soundness", "graph"),
    ],
)
def test_tampering_is_named(
    tmp_path: Path, change: Tamper, rehash: bool, verdict: str, name: str
) -> None:
    path = tampered(write(tmp_path / "model.onnx"), change, rehash=rehash)
    assert name in failures(path)[verdict]


@pytest.mark.parametrize("kept", [0, 1, 1000, -1])
def test_a_truncated_file_fails(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:kept])
    assert any(failures(path).values())


def test_a_runtime_that_uses_tf32_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Declared as float32, computed with operands cut to 11 bits."""
    path = write(tmp_path / "model.onnx")
    monkeypatch.setattr(OnnxRuntime, "outputs", _truncated_outputs)
    assert failures(path)["soundness"] == ["arithmetic"]


def test_lowered_constants_of_an_mlp_head_fail(tmp_path: Path) -> None:
    for name in ("curvature", "lipschitz"):
        path = write(tmp_path / f"{name}.onnx", head="mlp")
        tampered(
            path, lambda m, n=name: edit_weight(m, f"head.{n}", lambda t: t * np.float32(0.99))
        )
        assert failures(path)["soundness"] == [
            {"curvature": "curvature of the head", "lipschitz": "Lipschitz constants of the head"}[
                name
            ]
        ]


@pytest.mark.parametrize("rival", [0, 13, 20])
def test_one_lowered_curvature_of_many_classes_fails(tmp_path: Path, rival: int) -> None:
    """Beyond 20 classes all rivals of a class share a constant, but each has its entry."""

    def lower(table: np.ndarray) -> np.ndarray:
        table[7, rival] *= np.float32(0.9)
        return table

    network = freeze(make_network(classes=21, head="mlp")).stored_as("float32")
    manifest = make_manifest(network, tuple(map(str, range(21))), {}, {}, {})
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_bytes(network, manifest))
    assert failures(path)["soundness"] == []
    tampered(path, lambda model: edit_weight(model, "head.curvature", lower), rehash=True)
    assert "curvature of the head" in failures(path)["soundness"]


def test_what_could_not_be_checked_is_named(
    tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise EngineError("ONNX Runtime is not installed")

    path = write(tmp_path / "model.onnx")
    monkeypatch.setattr("lipdeploy.exporters.verify.OnnxRuntime", missing)
    status, out, _ = run_cli("verify", str(path))
    assert status == 0
    assert out.splitlines()[-1] == "soundness: passed (not checked here: execution)"


def test_the_command_says_why_and_fails(
    tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    path = tampered(write(tmp_path / "model.onnx"), lower_lipschitz, rehash=True)
    status, out, _ = run_cli("verify", str(path))
    assert status == 1
    assert out.splitlines()[-2:] == [
        "integrity: passed",
        "soundness: FAILED (Lipschitz bound; graph)",
    ]
    status, out, _ = run_cli("verify", str(path), "--json")
    summary = json.loads(out)
    assert (status, summary["integrity"], summary["soundness"]) == (1, True, False)
    checks = [Check(**check) for check in summary["checks"]]
    failed = [check.name for check in checks if check.passed is False]
    assert failed == ["Lipschitz bound", "graph"]


@pytest.mark.parametrize("pooling", ["max", "projection"])
def test_errors_in_exact_fractions_agree_with_those_in_float64(pooling: str) -> None:
    from lipdeploy.engine_error import ErrorAnalysis

    network = freeze(make_network(head="mlp", pooling=pooling)).stored_as("float16")
    for rounding in (Rounding.of_graph(FLOAT32, "blocked"), Rounding(TF32)):
        exact = exact_errors(network, rounding)
        found = ErrorAnalysis(network).errors(rounding)
        for a, b in ((exact.features, found.features), (exact.logits, found.logits)):
            assert 0 <= b.slope / a.slope - 1 < 1e-9
            assert 0 <= b.constant / a.constant - 1 < 1e-9


def test_errors_that_leave_out_an_operation_are_not_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims of who does not count the rounding of projection pooling."""
    lost = AffineBound(0.0, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Rounding, "distance_of_pairs", lambda *_: lost)
        path = write(tmp_path / "model.onnx", pooling="projection")
    failed = [check.name for check in verify(path) if check.passed is False]
    assert any(name.startswith("rounding errors, float32") for name in failed)


def test_numbers_that_cannot_be_squared_are_a_verdict_and_no_crash() -> None:
    with pytest.raises(BoundError, match="overflow"):
        Rounding(FLOAT32).distance_of_pairs(4, 1e200)
