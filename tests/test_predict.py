"""The predict command and the Predictor, on the bundled model and images."""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipdeploy import Predictor
from lipdeploy.errors import ImageError, ModelError, UsageError
from lipdeploy.locate import bundled_model, find_images, find_model
from lipdeploy.prediction import Failure
from lipdeploy.report.prediction import FIELDS

Cli = Callable[..., tuple[int, str, str]]

KEYS = {
    "path",
    "label",
    "class_index",
    "logits",
    "radius",
    "radius_255",
    "radius_file",
    "integer_budget",
    "guarantee",
    "assumptions",
    "space",
    "model",
    "engine",
}
CERTIFICATE_KEYS = KEYS - {"path", "label", "class_index", "logits", "model", "engine"}


@pytest.fixture
def samples(source: Path) -> Path:
    return source / "samples"


def json_rows(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture
def predict(run_cli: Cli, source: Path) -> Cli:
    model = source / "samples" / "model.onnx"
    return lambda *arguments: run_cli("predict", *arguments, "--model", model)


def test_a_directory_gives_one_json_line_a_picture(predict: Cli, samples: Path) -> None:
    status, output, errors = predict(samples, "--certify", "--json")
    rows = json_rows(output)
    assert (status, errors) == (0, "")
    assert len(rows) == 20
    for row in rows:
        assert set(row) == KEYS
        assert row["space"] == "input"
        assert row["guarantee"] == "program"
        assert len(row["logits"]) == 10
        assert int(np.argmax(row["logits"])) == row["class_index"]
        assert row["radius_255"] == pytest.approx(255 * row["radius"], rel=1e-12)
        assert row["radius"] == pytest.approx(row["radius_file"], rel=1e-9)
        squared = (255 * Fraction(row["radius_file"])) ** 2
        assert row["integer_budget"] == math.ceil(squared) - 1


def test_most_bundled_images_are_right_and_certified(predict: Cli, samples: Path) -> None:
    rows = json_rows(predict(samples, "--certify", "--json")[1])
    right = [r for r in rows if Path(str(r["path"])).name.startswith(str(r["label"]))]
    assert len(right) >= 12
    assert sum(r["radius"] > 36 / 255 for r in right) >= 8


def test_without_certify_the_keys_of_the_certificate_are_null(predict: Cli, samples: Path) -> None:
    (row,) = json_rows(predict(samples / "cat-0000.jpg", "--json")[1])
    assert {key for key, value in row.items() if value is None} == CERTIFICATE_KEYS


def test_lines_in_a_pipe_are_not_wrapped(predict: Cli, samples: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    shutil.copy(samples / "cat-0000.jpg", deep)
    (deep / "text.png").write_text("no image")
    _, output, errors = predict(deep)
    assert f"{deep / 'cat-0000.jpg'} " in output
    assert f"{deep / 'text.png'}: not a readable image" in errors
    assert "0x" not in output + errors


def test_both_runtimes_certify_nearly_the_same(predict: Cli, samples: Path) -> None:
    arguments = (samples, "--certify", "--json", "--guarantee", "network")
    radii = [
        [row["radius_255"] for row in json_rows(predict(*arguments, *more)[1])]
        for more in ([], ["--runtime", "numpy"])
    ]
    np.testing.assert_allclose(*radii, atol=0.01)


def test_the_program_certifies_less_the_coarser_its_arithmetic(predict: Cli, samples: Path) -> None:
    arguments = (samples, "--certify", "--json")
    network, float64, float32 = (
        np.array([row["radius_255"] for row in json_rows(predict(*arguments, *more)[1])])
        for more in (["--guarantee", "network"], ["--runtime", "numpy"], [])
    )
    is_certified = float32 > 0
    assert is_certified.sum() >= 15
    np.testing.assert_allclose(float64, network, atol=0.01)
    assert np.all(float32[is_certified] < float64[is_certified])
    np.testing.assert_allclose(float32, float64, atol=1.5)


def test_batches_do_not_matter(predict: Cli, samples: Path) -> None:
    radii = [
        [
            r["radius_255"]
            for r in json_rows(predict(samples, "--certify", "--json", "--batch", b)[1])
        ]
        for b in ("1", "7", "64")
    ]
    np.testing.assert_allclose(radii[0], radii[1], atol=1e-3)
    np.testing.assert_allclose(radii[0], radii[2], atol=1e-3)


def test_bad_images_are_rows_and_the_others_still_run(
    predict: Cli, samples: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes((samples / "cat-0000.jpg").read_bytes()[:400])
    shutil.copy(samples / "dog-0000.jpg", tmp_path / "good.jpg")
    (tmp_path / "notes.txt").write_text("passed over")
    (tmp_path / "empty").mkdir()
    strange = (tmp_path / "none.png", tmp_path / "empty")
    status, output, _ = predict(tmp_path, *strange, "--certify", "--json")
    rows = {Path(str(row["path"])).name: row for row in json_rows(output)}
    assert status == 1
    assert set(rows) == {"text.png", "cut.jpg", "good.jpg", "none.png", "empty"}
    assert set(rows["good.jpg"]) == KEYS
    for name in ("text.png", "cut.jpg", "none.png", "empty"):
        assert set(rows[name]) == {"path", "error"}


def test_below_the_smallest_radius_the_answer_is_abstained(predict: Cli, samples: Path) -> None:
    arguments = (samples, "--certify", "--json", "--min-radius", "36/255")
    status, output, _ = predict(*arguments)
    rows = json_rows(output)
    assert status == 3
    assert all(row["abstained"] == (row["radius"] < 36 / 255) for row in rows)
    assert {row["abstained"] for row in rows} == {True, False}
    assert predict(samples, "--min-radius", "0", "--json")[0] == 0


def test_the_csv_has_the_same_columns(predict: Cli, samples: Path) -> None:
    status, output, _ = predict(samples, "--certify", "--csv")
    rows = list(csv.DictReader(io.StringIO(output)))
    assert status == 0
    assert len(rows) == 20
    assert set(rows[0]) == KEYS | {"reason", "abstained", "error"}
    assert len(json.loads(rows[0]["logits"])) == 10


def test_the_output_has_the_fields_that_are_documented(
    predict: Cli, samples: Path, tmp_path: Path
) -> None:
    _, output, _ = predict(samples, tmp_path / "none.png", "--json", "--min-radius", "1/255")
    rows = json_rows(output)
    found = {key for row in rows for key in row} | {"reason"}
    assert found == set(FIELDS)
    assert [key for row in rows[:1] for key in row] == [key for key in FIELDS if key in rows[0]]


def test_the_table_shows_radii_and_what_they_mean(predict: Cli, samples: Path) -> None:
    status, output, errors = predict(samples, "--certify")
    assert status == 0
    assert output.count("/255") == 40
    assert "guarantee program" in errors
    assert "\n  - its sums may be in any order; the graph keeps them short\n" in errors
    assert max(map(len, errors.splitlines())) < 160


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "--csv"], "exclude each other"),
        (["--certify", "--min-radius", "much"], "as 36/255"),
        (["--certify", "--min-radius", "-1"], "negative"),
        (["--certify", "--min-radius", "1e400"], "as 36/255"),
        (["--guarantee", "nothing"], "expected one of program, network, no-certified-flip"),
        (["--device", "tpu"], "expected one of auto, cpu, cuda"),
        (["--runtime", "onx"], "expected one of"),
        (["--batch", "0"], "at least 1"),
    ],
)
def test_wrong_usage_is_one_line_and_status_two(
    predict: Cli, samples: Path, arguments: list[str], message: str
) -> None:
    status, output, errors = predict(samples, *arguments)
    assert (status, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_trained_model_is_no_engine(run_cli: Cli, samples: Path) -> None:
    status, _, errors = run_cli("predict", samples, "--model", samples / "model.pt")
    assert status == 1
    assert f"lipdeploy export {samples / 'model.pt'}" in errors


def test_the_predictor_takes_paths_bytes_images_and_arrays(samples: Path) -> None:
    path = samples / "cat-0000.jpg"
    image = Image.open(path)
    sources = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    with Predictor(samples / "model.onnx", batch_size=2) as predictor:
        predictions = list(predictor(sources))
        predictions += [next(predictor(source)) for source in sources]
    assert len({prediction.label for prediction in predictions}) == 1
    radii = [prediction.radius for prediction in predictions]
    np.testing.assert_allclose(radii, radii[0], atol=1e-5)
    assert radii[0] > 0


def test_the_predictor_raises_where_an_image_is_bad(samples: Path) -> None:
    with Predictor(samples / "model.onnx") as predictor, pytest.raises(ImageError, match="#1: "):
        list(predictor([(samples / "cat-0000.jpg").read_bytes(), b"nothing"]))
    with pytest.raises(UsageError):
        Predictor(samples / "model.onnx", batch_size=0)


def test_a_directory_is_no_image_for_the_predictor(samples: Path) -> None:
    advice = "a directory; give its images one by one"
    with Predictor(samples / "model.onnx") as predictor, pytest.raises(ImageError, match=advice):
        next(predictor(samples))


def test_training_files_are_no_engines(run_cli: Cli, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((samples / "model.pt").read_bytes())
    errors = run_cli("predict", samples, "--model", tmp_path / "checkpoint.pt")[2]
    assert f"lipdeploy export {tmp_path / 'model.pt'}" in errors


def test_without_a_model_the_predictor_takes_the_default(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIPDEPLOY_MODEL", raising=False)
    with Predictor() as predictor:
        assert predictor.model == str(bundled_model())
        assert next(predictor(samples / "cat-0000.jpg")).radius > 0


def test_an_engine_that_returns_nan_gives_an_error_row(samples: Path) -> None:
    with Predictor(samples / "model.onnx", runtime="numpy") as predictor:
        run = predictor.runtime.run
        predictor.runtime.run = lambda pixels: tuple(np.nan * v for v in run(pixels))
        (result,) = predictor.attempt([samples / "cat-0000.jpg"])
    assert isinstance(result, Failure)
    assert "not finite" in result.error
    predictor.close()


def test_shown_radii_are_rounded_down() -> None:
    from lipdeploy.report.prediction import shown_radius

    for radius in np.nextafter(np.arange(1, 2000) / 100, 0):
        shown = str(shown_radius(Fraction(float(radius)))).removesuffix("/255")
        assert shown == "not certified" or Fraction(shown) <= Fraction(float(radius))


def test_images_that_are_resized_or_blended_have_their_own_file_radius(samples: Path) -> None:
    small = Image.open(samples / "truck-0001.jpg")
    doubled = small.resize((64, 64), Image.Resampling.NEAREST)
    blended = small.convert("RGBA")
    blended.putalpha(254)
    with Predictor(samples / "model.onnx") as predictor:
        plain, large, alpha = (p.certificate for p in predictor([small, doubled, blended]))
    assert plain is not None
    assert large is not None
    assert alpha is not None
    assert plain.radius_file == pytest.approx(plain.radius, rel=1e-9)
    # Halving averages 2 x 2 pixels and more: the same change needs about twice the l2 norm.
    assert large.radius_file is not None
    assert 1.5 < large.radius_file / large.radius < 2.5
    assert (alpha.radius_file, alpha.integer_budget) == (None, None)
    assert alpha.radius > 0


def test_the_default_model_follows_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    runs = tmp_path / "runs"
    assert find_model(Path("a.onnx"), {}, runs) == (Path("a.onnx"), "given")
    assert find_model(None, {"LIPDEPLOY_MODEL": "b.onnx"}, runs)[0] == Path("b.onnx")
    assert find_model(None, {}, runs) == (bundled_model(), "bundled")
    for age, name in ((200, "old"), (100, "new"), (300, "older")):
        (runs / name).mkdir(parents=True)
        (runs / name / "model.onnx").touch()
        os.utime(runs / name / "model.onnx", (1e9 - age, 1e9 - age))
    assert find_model(None, {}, runs) == (runs / "new" / "model.onnx", f"newest under {runs}")
    (runs / "new" / "model.pt").touch()
    assert "model.pt is newer and not exported yet" in find_model(None, {}, runs)[1]
    monkeypatch.setattr("lipdeploy.locate.bundled_model", lambda: tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="lipdeploy train"):
        find_model(None, {}, tmp_path / "empty")


def test_patterns_and_directories_hold_pictures_only(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "b.txt", "deep/c.JPG"):
        (tmp_path / name).touch()
    pictures = [tmp_path / "a.png", tmp_path / "deep" / "c.JPG"]
    assert find_images([str(tmp_path)]) == pictures
    assert find_images([f"{tmp_path}/**/*"]) == pictures
    assert find_images([str(tmp_path / "b.txt")]) == [tmp_path / "b.txt"]
    (tmp_path / "empty").mkdir()
    assert find_images([str(tmp_path / "empty")]) == [tmp_path / "empty"]
    assert find_images([f"{tmp_path}/*.jpeg"]) == [Path(f"{tmp_path}/*.jpeg")]


def test_debug_shows_the_traceback(run_cli: Cli, samples: Path) -> None:
    with pytest.raises(UsageError):
        run_cli("--debug", "predict", samples, "--json", "--csv")
