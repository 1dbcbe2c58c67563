"""The evaluate command, and the counting behind it."""

import csv
import hashlib
import io
import json
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import NotedPaths, own_test_set
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lipdeploy import Predictor, plots
from lipdeploy.datasets import LabelledSources, scan_folder
from lipdeploy.errors import OutputError
from lipdeploy.evaluation import Evaluation, Outcome, outcomes
from lipdeploy.prediction import Certificate, Failure, Prediction
from lipdeploy.predictor import DECODERS

Cli = Callable[..., tuple[int, str, str]]
RADII = (36, 72, 108, 255)


@pytest.fixture
def own(source: Path, tmp_path: Path) -> Path:
    """The bundled images as a test set."""
    return own_test_set(tmp_path / "own", source / "samples")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture
def evaluate(run_cli: Cli, source: Path, own: Path) -> Cli:
    model = source / "samples" / "model.onnx"
    return lambda *arguments: run_cli("evaluate", model, own, *arguments)


def test_the_summary_is_what_predict_says_counted_by_hand(
    evaluate: Cli, run_cli: Cli, source: Path, own: Path
) -> None:
    status, output, errors = evaluate("--json")
    (summary,) = [json.loads(line) for line in output.splitlines()]
    assert (status, errors) == (0, "")
    model = source / "samples" / "model.onnx"
    lines = run_cli("predict", own, "--certify", "--json", "--model", model)[1].splitlines()
    rows = [json.loads(line) for line in lines]
    right = [row for row in rows if row["label"] == Path(row["path"]).parent.name]
    assert summary["images"] == len(rows) == 20
    assert summary["correct"] == len(right)
    assert summary["clean_accuracy"] == len(right) / 20
    for entry, radius in zip(summary["certified"], RADII, strict=True):
        count = sum(Fraction(row["radius"]) > Fraction(radius, 255) for row in right)
        assert entry["exactly"] == f"{radius}/255"
        assert radius - 1e-9 < entry["radius_255"] <= radius
        by_statement = entry["images_by_statement"]
        assert entry["images"] == by_statement["program"] <= by_statement["network"]
        assert (entry["images"], entry["accuracy"]) == (count, count / 20)
    assert summary["certified"][0]["images"] > summary["certified"][2]["images"] > 0
    total = sum(row["radius"] for row in right)
    assert summary["average_certified_radius"] == pytest.approx(total / 20)
    assert summary["mean_correct_radius"] == pytest.approx(total / len(right))
    assert summary["guarantee"] == "program"
    assert summary["rounding"] == "float32 blocked"
    assert 0 < summary["cost_255"]["program"]["mean"] <= summary["cost_255"]["program"]["largest"]
    assert summary["images_per_second"] > 0


def test_the_bundled_model_is_as_good_as_it_is_said_to_be(
    run_cli: Cli, source: Path, test_set: Path
) -> None:
    model = source / "samples" / "model.onnx"
    summary = json.loads(run_cli("evaluate", model, test_set, "--json")[1])
    assert summary["images"] in {20, 500}
    assert summary["clean_accuracy"] >= 0.6
    assert summary["certified"][0]["accuracy"] >= 0.45


def test_a_trained_model_is_evaluated_as_its_export_would_be(
    evaluate: Cli, run_cli: Cli, source: Path, own: Path
) -> None:
    of_engine = json.loads(evaluate("--json")[1])
    of_model = json.loads(run_cli("evaluate", source / "samples" / "model.pt", own, "--json")[1])
    assert of_model["model"].endswith("model.pt, frozen")
    assert of_model["certified"] == of_engine["certified"]
    assert of_model["average_certified_radius"] == pytest.approx(
        of_engine["average_certified_radius"], abs=1e-6
    )


def test_the_table_shows_shares_and_what_they_mean(evaluate: Cli) -> None:
    status, output, errors = evaluate("--radii", "0.5, 36/255", "--radii", "1/10")
    assert status == 0
    assert [line.split()[2] for line in output.splitlines() if "certified at" in line] == [
        "25.5/255",
        "36/255",
        "127.5/255",
    ]
    assert "average certified radius" in output
    assert "20 images in" in errors
    assert "guarantee program" in errors
    assert "\x1b" not in output + errors


def test_the_table_of_images_has_a_line_each(evaluate: Cli, tmp_path: Path) -> None:
    assert evaluate("--csv", tmp_path / "images.csv")[0] == 0
    rows = table(tmp_path / "images.csv")
    assert len(rows) == 20
    for row in rows:
        assert Path(row["path"]).parent.name == row["class"]
        assert row["correct"] == str(int(row["class"] == row["predicted"]))
        assert float(row["radius_255"]) >= 0
        assert row["guarantee"] == "program"
        assert row["radius_255"] == row["radius_255_program"]
        assert float(row["radius_255_program"]) <= float(row["radius_255_network"])
    assert {row["correct"] for row in rows} == {"0", "1"}


def test_files_of_other_kinds_are_not_written_over(
    run_cli: Cli, source: Path, own: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "model.onnx"
    engine.write_bytes((source / "samples" / "model.onnx").read_bytes())
    picture = own / "test" / "cat" / "cat-0000.jpg"
    for option, path, suffix in (("--csv", engine, ".csv"), ("--curve", picture, ".png")):
        before = path.read_bytes()
        status, _, errors = run_cli("evaluate", engine, own, option, path)
        assert (status, f"must end in {suffix}" in errors) == (2, True)
        assert path.read_bytes() == before


def test_an_older_table_stays_until_the_new_one_is_whole(
    evaluate: Cli, own: Path, tmp_path: Path
) -> None:
    (tmp_path / "images.csv").write_text("precious")
    (own / "test" / "cat").rename(own / "test" / "kat")
    status, _, errors = evaluate("--csv", tmp_path / "images.csv")
    assert (status, "has no class 'kat'; did you mean cat" in errors) == (1, True)
    assert (tmp_path / "images.csv").read_text() == "precious"
    (own / "test" / "kat").rename(own / "test" / "cat")
    assert evaluate("--csv", tmp_path / "images.csv", "-q")[0] == 0
    assert len(table(tmp_path / "images.csv")) == 20
    assert not list(tmp_path.glob(".*.partial"))


def test_radii_that_differ_have_names_that_differ(evaluate: Cli) -> None:
    output = evaluate("--radii", "0.1411764,36/255")[1]
    names = [line.split()[2] for line in output.splitlines() if "certified at" in line]
    assert len(set(names)) == 2


def test_cifar_is_evaluated_by_its_name(
    run_cli: Cli, source: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scan_folder(own, "test")

    class BundledCifar:
        """What torchvision's CIFAR-10 looks like, with the bundled images."""

        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            assert (root, train, download) == ("somewhere", False, True)
            self.data = np.stack([np.asarray(Image.open(path)) for path in folder.sources])
            self.targets, self.classes = folder.labels, list(folder.classes)

    module = ModuleType("torchvision.datasets")
    module.CIFAR10 = module.CIFAR100 = BundledCifar
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    model = source / "samples" / "model.onnx"
    status, by_name, errors = run_cli("evaluate", model, "cifar10", "--data", "somewhere", "--json")
    assert (status, errors) == (0, "")
    by_folder = run_cli("evaluate", model, own, "--json")[1]
    assert json.loads(by_name)["data"] == "cifar10 test"
    assert json.loads(by_name)["certified"] == json.loads(by_folder)["certified"]


def test_the_curve_is_a_picture(evaluate: Cli, tmp_path: Path) -> None:
    assert evaluate("--curve", tmp_path / "curve.png", "--quiet")[2] == ""
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
        assert len(picture.convert("L").getcolors()) > 3


def test_without_matplotlib_a_curve_is_refused_before_any_work(
    evaluate: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, output, errors = evaluate(
        "--curve", tmp_path / "curve.png", "--csv", tmp_path / "a.csv"
    )
    assert (status, output) == (1, "")
    assert "pip install 'lipdeploy[plot]'" in errors
    assert not (tmp_path / "a.csv").exists()
    with pytest.raises(OutputError):
        plots.check_matplotlib()


def test_images_that_cannot_be_read_count_as_wrong(
    evaluate: Cli, own: Path, tmp_path: Path
) -> None:
    before = json.loads(evaluate("--json")[1])
    (own / "test" / "cat" / "bad.png").write_text("no image")
    status, output, errors = evaluate("--json", "--csv", tmp_path / "images.csv", "-q")
    after = json.loads(output)
    assert status == 1
    assert (after["images"], after["unreadable"]) == (21, 1)
    assert after["correct"] == before["correct"]
    assert "bad.png: not a readable image" in errors
    (bad,) = [row for row in table(tmp_path / "images.csv") if row["error"]]
    assert (bad["class"], bad["predicted"], bad["correct"]) == ("cat", "", "0")


def test_a_limit_takes_some_of_every_class(evaluate: Cli, tmp_path: Path) -> None:
    assert (
        json.loads(evaluate("--json", "--limit", "10", "--csv", tmp_path / "a.csv")[1])["images"]
        == 10
    )
    rows = table(tmp_path / "a.csv")
    assert len({row["class"] for row in rows}) == 10


def test_no_more_images_are_held_than_are_read_ahead(source: Path, own: Path) -> None:
    folder = scan_folder(own, "test")
    sources = NotedPaths(folder.sources)
    images = LabelledSources("own", folder.classes, sources, folder.labels)
    with Predictor(source / "samples" / "model.onnx", batch_size=4) as predictor:
        for done, _ in enumerate(outcomes(predictor, images), start=1):
            assert len(sources.taken) <= done + 8 + max(4, DECODERS)
    assert len(sources.taken) == 20


def outcome(radius: float, *, is_right: bool = True) -> Outcome:
    certificate = Certificate(radius, 255 * radius, None, None, "network", (), None)
    return Outcome("cat", Prediction("a", "cat" if is_right else "dog", 0, (), certificate))


def test_a_radius_is_certified_where_it_is_exceeded() -> None:
    evaluation = Evaluation()
    limit = Fraction(36, 255)
    nearest = float(limit)
    near = [math.nextafter(nearest, 0), nearest, math.nextafter(nearest, 1)]
    for radius in [*near, 0.0]:
        evaluation.add(outcome(radius))
    evaluation.add(outcome(1.0, is_right=False))
    evaluation.add(Outcome("cat", Failure("b", "broken")))
    assert evaluation.certified(limit) == sum(Fraction(radius) > limit for radius in near)
    assert evaluation.certified(Fraction(nearest)) == 1
    assert evaluation.certified(Fraction(0)) == 3
    assert (evaluation.images, evaluation.correct, evaluation.unreadable) == (6, 4, 1)


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans()), min_size=1, max_size=30))
def test_the_curve_is_the_share_certified_beyond_every_radius(
    made: list[tuple[float, bool]],
) -> None:
    evaluation = Evaluation()
    for radius, is_right in made:
        evaluation.add(outcome(radius, is_right=is_right))
    radii, shares = evaluation.curve()
    assert radii[0] == 0
    assert shares[-1] == 0
    for radius, share in zip(radii, shares, strict=True):
        assert share == evaluation.certified_accuracy(Fraction(radius))
        expected = sum(r > radius for r, is_right in made if is_right) / len(made)
        assert share == expected


def test_nothing_evaluated_is_no_division_by_zero() -> None:
    empty = Evaluation()
    assert empty.clean_accuracy == empty.average_certified_radius == empty.mean_correct_radius == 0
    assert empty.certified_accuracy(Fraction(0)) == 0


def test_a_radius_without_its_255_is_doubted(evaluate: Cli) -> None:
    assert "--radii 36 is 9180/255; did you mean 36/255?" in evaluate("--radii", "36")[2]


def test_results_name_the_file_that_they_belong_to(evaluate: Cli, source: Path) -> None:
    summary = json.loads(evaluate("--json")[1])
    data = (source / "samples" / "model.onnx").read_bytes()
    assert summary["sha256"] == hashlib.sha256(data).hexdigest()


def test_the_json_is_the_only_thing_on_standard_output(evaluate: Cli) -> None:
    output = evaluate("--json", "-v")[1]
    assert len(output.splitlines()) == 1
    assert json.load(io.StringIO(output))
