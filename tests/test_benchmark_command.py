"""Engines side by side: the command, its timing and its comparison."""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_network, random_pixels, write_image_folder
from PIL import Image

from lipdeploy import Predictor, measuring, predictor
from lipdeploy.datasets import LabelledSources, scan_folder
from lipdeploy.errors import DatasetError
from lipdeploy.exporters.export import export_model
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.measuring import Latency, compare_answers, interleave, largest_difference
from lipdeploy.report.benchmark import Measured, tell_unanswered, write_rows, write_times
from lipdeploy.runtimes import Array, Pixels
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, save_model

Cli = Callable[..., tuple[int, str, str]]
FAST = ("--batch", "1,3", "--seconds", "0.05")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two engines of it, and the same network with its classes the other way round."""
    folder = tmp_path_factory.mktemp("engines")
    network = make_network(classes=2, head="linear")
    examples = torch.from_numpy(random_pixels(2, 8)).float()
    card = ModelCard(("bright", "dark"), "tiny", "lipdeploy train tiny", 1)
    save_model(TrainedModel(network, card, examples), folder / "model.pt")
    export_model(folder / "model.pt", folder / "model.onnx", ExportOptions())
    export_model(folder / "model.pt", folder / "full.onnx", ExportOptions(weights="float32"))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """24 images of two classes."""
    return write_image_folder(tmp_path / "tiny", side=8)


def rows_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in output.splitlines()]


def test_each_engine_and_batch_size_has_a_row(run_cli: Cli, engines: Path) -> None:
    files = [engines / "model.onnx", engines / "full.onnx"]
    status, output, errors = run_cli("benchmark", *files, *FAST, "--json")
    rows = rows_of(output)
    assert (status, errors) == (0, "")
    names = [str(path) for path in files]
    assert [(row["file"], row["batch"]) for row in rows] == [(n, b) for n in names for b in (1, 3)]
    for row in rows:
        assert row["format"] == "onnx"
        assert re.fullmatch(r"onnxruntime \S+, float32, cpu", row["runtime"])
        assert row["bytes"] == Path(row["file"]).stat().st_size
        for part in ("engine", "certified"):
            times = row[f"{part}_seconds"]
            assert 0 < times["p25"] <= times["p50"] <= times["p75"] <= times["p95"] < 1
            assert times["calls"] >= measuring.LEAST_ROUNDS
        assert row["images_per_second"] == row["batch"] / row["engine_seconds"]["p50"]
        assert row["certified_per_second"] == row["batch"] / row["certified_seconds"]["p50"]
        assert row["images_per_second"] > row["certified_per_second"]
        assert "clean_accuracy" not in row


def test_answers_are_counted_as_evaluate_counts_them(
    run_cli: Cli, engines: Path, images: Path
) -> None:
    files = [engines / "full.onnx", engines / "model.onnx", engines / "model.pt"]
    radii = ("--radii", "1/255,36/255")
    output = run_cli("benchmark", *files, *FAST, "--json", "--data", images, *radii)[1]
    full, half, trained = (rows_of(output)[index] for index in (0, 2, 4))
    for row, path in zip((full, half, trained), files, strict=True):
        summary = json.loads(run_cli("evaluate", path, images, "--json", *radii)[1])
        for key in ("images", "correct", "clean_accuracy", "unreadable", "guarantee", "data"):
            assert row[key] == summary[key], key
        kept = ("radius", "exactly", "images", "accuracy")
        certified = [{key: entry[key] for key in kept} for entry in summary["certified"]]
        assert row["certified"] == certified
    assert full["images"] == 24
    assert full["certified"][0]["images"] > 0
    assert full["logit_difference"] is None
    assert 0 < half["logit_difference"] < 1
    assert half["logit_difference"] == trained["logit_difference"]
    assert trained["file"].endswith("model.pt, frozen")


def test_a_limit_takes_fewer_images(run_cli: Cli, engines: Path, images: Path) -> None:
    data = ("--data", images, "--limit", "6")
    (row, _) = rows_of(run_cli("benchmark", engines / "model.onnx", *FAST, "--json", *data)[1])
    assert row["images"] == 6


def test_the_tables_have_a_line_each(run_cli: Cli, engines: Path, images: Path) -> None:
    files = [engines / "model.onnx", engines / "full.onnx"]
    status, output, errors = run_cli("benchmark", *files, *FAST, "--data", images)
    lines = [line for line in output.splitlines() if "full.onnx" in line]
    assert status == 0
    assert len(lines) == 3
    assert re.search(r" onnx +onnxruntime \S+, float32, cpu +\d+\.\d\d +1 +\d+\.\d\d ", lines[0])
    assert re.search(r"%  +\d+\.\d\d %  program  +[\d.e-]+$", lines[2])
    assert "certified at 36/255" in output
    assert re.search(r"quantiles of at least \d+ calls each", errors)
    assert "answers to 24 images of" in errors


def test_why_an_engine_runs_elsewhere_is_a_remark(
    engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = turned(engines / "model.onnx")
    made.runtime.description = "reversed 1.0, float32, cpu (no usable GPU)"
    write_times([Measured(made, [measuring.Timed(1, *[Latency.of([0.5, 0.25])] * 2)])])
    output, errors = capsys.readouterr()
    assert re.search(r"reversed 1.0, float32, cpu +\d", output)
    assert "model.onnx: reversed 1.0, float32, cpu (no usable GPU)\n" in errors


def test_the_reference_is_a_runtime_like_others(run_cli: Cli, engines: Path) -> None:
    arguments = (engines / "model.onnx", *FAST, "--runtime", "numpy", "--json")
    row = rows_of(run_cli("benchmark", *arguments)[1])[0]
    assert row["runtime"].startswith("numpy ")
    assert row["rounding"].startswith("float64")


def test_images_without_an_answer_are_told_and_fail(
    run_cli: Cli, engines: Path, images: Path
) -> None:
    (images / "test" / "dark" / "broken.png").write_text("no image")
    arguments = (engines / "model.onnx", engines / "full.onnx", *FAST, "--data", images, "--json")
    status, output, errors = run_cli("benchmark", *arguments)
    assert status == 1
    assert [row["unreadable"] for row in rows_of(output)] == [1, 1, 1, 1]
    assert rows_of(output)[2]["logit_difference"] < 1
    assert errors.count("no answer to 1 images; 'lipdeploy evaluate' names them") == 2


def test_batches_that_an_engine_never_gets_are_refused(
    run_cli: Cli, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = Predictor(engines / "model.onnx").network.largest_values
    monkeypatch.setattr(predictor, "VALUES_AT_ONCE", 5 * values)
    status, output, errors = run_cli("benchmark", engines / "model.onnx", "--batch", "1,6")
    assert (status, output) == (2, "")
    assert re.match(r"Error: --batch 6: \S+model.onnx takes at most 5 images at a time", errors)


def test_a_latency_is_that_of_single_calls() -> None:
    def nap() -> None:
        time.sleep(0.004)

    fast, slow = interleave([lambda: None, nap], 0.1)
    assert 0.004 <= slow.p25 <= slow.p50 < 0.04
    assert fast.p95 < 0.001
    assert fast.calls > 100 * slow.calls
    assert Latency.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Latency(5, 2.0, 3.0, 4.0, pytest.approx(4.8))


def test_all_take_a_turn_in_each_round_and_another_one_begins() -> None:
    happened: list[str] = []

    def function(name: str) -> Callable[[], None]:
        return lambda: happened.append(name) or time.sleep(0.001)

    interleave([function(name) for name in "abc"], 0.05, happened.append)
    warm_up, *rounds = re.split(r"measure: round \d+", " ".join(happened))
    assert warm_up.split() == ["warm", "up", *sorted("abc" * measuring.WARM_UP)]
    assert len(rounds) >= measuring.LEAST_ROUNDS
    turns = ["".join(dict.fromkeys(calls.split())) for calls in rounds]
    assert turns == (["bca", "cab", "abc"] * len(turns))[: len(turns)]


class Reversed:
    """An engine whose classes stand in the other order, and that may fail."""

    arithmetic = "float32"
    description = "reversed"

    def __init__(self, other: Any, broken: int | None = None) -> None:
        self.other, self.broken = other, broken

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        features, logits = self.other.run(pixels)
        logits = logits[:, ::-1].copy()
        if self.broken is not None:
            logits[self.broken] = math.nan
        return features, logits


def turned(path: Path, broken: int | None = None) -> Predictor:
    made = Predictor(path)
    made.runtime = Reversed(made.runtime, broken)
    made.manifest = replace(made.manifest, classes=made.manifest.classes[::-1])
    return made


def test_logits_are_compared_class_by_class(engines: Path, images: Path) -> None:
    path = engines / "model.onnx"
    folder = scan_folder(images, "test")
    first, second = compare_answers([Predictor(path), turned(path)], folder)
    assert first.logit_difference is None
    assert second.logit_difference == 0
    assert first.evaluation.correct == second.evaluation.correct


def test_logits_that_are_not_finite_are_no_small_difference(
    engines: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = engines / "model.onnx"
    folder = scan_folder(images, "test")
    both = [Predictor(path), turned(path, broken=3)]
    first, second = compare_answers(both, folder)
    assert second.logit_difference == math.inf
    assert (first.evaluation.unreadable, second.evaluation.unreadable) == (0, 1)
    latency = Latency(1, 1.0, 1.0, 1.0, 1.0)
    measured = Measured(both[1], [measuring.Timed(1, latency, latency)], second)
    write_rows(measured, [])
    (row,) = rows_of(capsys.readouterr().out)
    assert row["logit_difference"] is None
    assert row["unreadable"] == 1
    assert tell_unanswered([measured]) == 1


def test_the_largest_difference_is_nan_safe() -> None:
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    hole = np.array([[1.0, 2.5], [math.nan, math.nan]])
    assert largest_difference(a, a + np.array([0.25, -0.5])) == 0.5
    assert largest_difference(a, hole) == largest_difference(hole, a) == math.inf
    assert largest_difference(hole, hole + 1) == 1
    assert largest_difference(hole[1:], hole[1:]) == 0


def test_other_classes_than_the_images_are_an_error(engines: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    other = LabelledSources("own", ("cat", "dog"), [Image.fromarray(pixels)], [0])
    with pytest.raises(DatasetError, match="own: the model has no class 'cat'"):
        list(compare_answers([Predictor(engines / "model.onnx")], other))
