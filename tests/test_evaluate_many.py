"""Evaluate with lists of images, Parquet files, and several models at once."""

import csv
import io
import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from helpers import own_test_set
from PIL import Image
from pyarrow import parquet

from lipdeploy.datasets import scan_folder, scan_list
from lipdeploy.errors import DatasetError
from lipdeploy.report.evaluation import comparison_notes

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def own(source: Path, tmp_path: Path) -> Path:
    return own_test_set(tmp_path / "own", source / "samples")


@pytest.fixture
def model(source: Path) -> Path:
    return source / "samples" / "model.onnx"


def write_list(path: Path, rows: list[tuple[str, str]], head: str = "path,label") -> Path:
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
    return path


def lines_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def listed(folder: Path) -> list[tuple[str, str]]:
    images = scan_folder(folder, "test")
    paths = [str(path.relative_to(folder)) for path in images.sources]
    return list(zip(paths, [images.classes[label] for label in images.labels], strict=True))


def test_a_list_is_evaluated_as_the_folder_that_it_lists(
    run_cli: Cli, model: Path, own: Path
) -> None:
    table = write_list(own / "list.csv", listed(own))
    by_list = json.loads(run_cli("evaluate", model, table, "--json")[1])
    by_folder = json.loads(run_cli("evaluate", model, own, "--json")[1])
    assert by_list["data"] == str(table)
    for name in ("images", "correct", "certified", "classes", "mistakes"):
        assert by_list[name] == by_folder[name]


def test_a_list_may_lack_classes_but_not_make_them_up(run_cli: Cli, model: Path, own: Path) -> None:
    rows = [row for row in listed(own) if row[1] != "ship"]
    table = write_list(own / "list.csv", rows)
    status, output, _ = run_cli("evaluate", model, table, "--json")
    ships = next(row for row in json.loads(output)["classes"] if row["name"] == "ship")
    assert (status, ships["images"], ships["certified"]) == (0, 0, [0, 0, 0, 0])
    for label, hint in (
        ("shpi", "the model has no class 'shpi'; did you mean ship"),
        ("3", "go by name: number 3 in the order of the model is cat, if that order was meant"),
        ("unicorn", "it knows airplane, automobile"),
    ):
        write_list(own / "list.csv", [*rows, ("test/ship/ship-0000.jpg", label)])
        status, _, errors = run_cli("evaluate", model, table)
        assert (status, hint in errors) == (1, True)


def test_a_list_keeps_spaces_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a, b.png", "sub/c.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text(
        '\ufefflabel, more, path\ngreat dane,1," a, b.png"\n"say ""hi""",2,sub/c.png\n'
    )
    images = scan_list(tmp_path / "list.csv")
    assert images.sources == [tmp_path / "a, b.png", tmp_path / "sub" / "c.png"]
    assert [images.classes[label] for label in images.labels] == ["great dane", 'say "hi"']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column 'path' in its first line, which is empty and must name"),
        (b"path,labels\na.png,cat\n", "no column 'label'.*did you mean labels"),
        (b"file,label\na.png,cat\n", "no column 'path' .* has 'file', 'label' and must name"),
        (b"path;label\na.png;cat\n", "no column 'path' .*; separate them by commas"),
        (
            b"path,label\na.png,cat\nnone.png,cat\n",
            "line 3 names none.png, and there is no file .*none.png; write paths relative to",
        ),
        (b"path,label\n", "a list without images; add a line for each"),
        (b"path,label\na.png,cat\nb.png\n", "line 3 has no label"),
        (b"path,label\n,cat\n", "line 2 has no path"),
        (b"path,label\n\xff\xfe,cat\n", "not a CSV file in UTF-8"),
        (b"path,label\na.png,c\x1bat\n", "is no name of a class; change the label"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    (tmp_path / "a.png").touch()
    with pytest.raises(DatasetError, match=message):
        scan_list(tmp_path / "list.csv")


def test_a_list_that_is_not_there_is_said_to_be_missing(run_cli: Cli, model: Path) -> None:
    status, _, errors = run_cli("evaluate", model, "gone.csv")
    assert (status, "gone.csv: cannot be read (No such file" in errors) == (1, True)


def test_the_parquet_file_holds_what_the_csv_file_holds(
    run_cli: Cli, model: Path, own: Path, tmp_path: Path
) -> None:
    (own / "test" / "cat" / "bad.png").write_text("no image")
    paths = tmp_path / "a.csv", tmp_path / "a.parquet"
    run_cli("evaluate", model, own, "--csv", paths[0], "--parquet", paths[1])
    rows = parquet.read_table(paths[1]).to_pylist()
    written = lines_of(paths[0])
    assert len(rows) == len(written) == 21
    for row, line in zip(rows, written, strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == line
    first = rows[0]
    assert isinstance(first["radius"], float)
    assert first["equal_change_255"] == pytest.approx(first["radius_255"] / 3072**0.5)
    assert not list(tmp_path.glob(".*.partial"))


def test_without_pyarrow_parquet_is_refused_before_any_work(
    run_cli: Cli, model: Path, own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    status, output, errors = run_cli("evaluate", model, own, "--parquet", tmp_path / "a.parquet")
    assert (status, output) == (1, "")
    assert "--parquet needs pyarrow; pip install 'lipdeploy[parquet]'" in errors


def test_models_side_by_side_differ_as_their_images_do(
    run_cli: Cli, model: Path, small_engine: Path, own: Path, tmp_path: Path
) -> None:
    table = tmp_path / "all.csv"
    status, output, _ = run_cli("evaluate", model, small_engine, own, "--json", "--csv", table)
    first, second = (json.loads(line) for line in output.splitlines())
    alone = json.loads(run_cli("evaluate", small_engine, own, "--json")[1])
    assert status == 0
    assert "against" not in first
    assert second["certified"] == alone["certified"]
    assert second["against"]["model"] == first["model"]
    rows = lines_of(table)
    assert [row["model"] for row in rows] == [str(model)] * 20 + [str(small_engine)] * 20
    for entry in second["against"]["differences"][1:]:
        radius = Fraction(entry["exactly"])
        first_ones, second_ones = (
            {r["path"] for r in part if r["correct"] == "1" and Fraction(r["radius"]) > radius}
            for part in (rows[:20], rows[20:])
        )
        assert entry["only_this"] == len(second_ones - first_ones)
        assert entry["only_other"] == len(first_ones - second_ones)
        assert entry["difference"] * 20 == pytest.approx(len(second_ones) - len(first_ones))
        assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1]
    assert second["against"]["differences"][1]["only_other"] > 0


def test_the_comparison_is_a_table_of_shares_and_one_of_differences(
    run_cli: Cli, model: Path, small_engine: Path, own: Path, tmp_path: Path
) -> None:
    curve = tmp_path / "curve.png"
    status, output, errors = run_cli("evaluate", model, small_engine, own, "--curve", curve)
    assert status == 0
    assert output.count(str(model)) == 2
    assert f"{small_engine} against {model}" in output
    assert "only this" in output
    assert "95 % intervals" in errors
    with Image.open(curve) as picture:
        assert picture.format == "PNG"


def test_radii_of_other_inputs_or_statements_are_not_compared_silently(
    run_cli: Cli, model: Path, small_engine: Path, own: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    for option in ([], ["--json"], ["--report", report]):
        errors = run_cli("evaluate", model, small_engine, own, *option)[2]
        assert "the models take images of 32 x 32 and 8 x 8 pixels" in errors
        assert "different statements" not in errors
    assert "the models take images of 32 x 32 and 8 x 8 pixels" in report.read_text()
    assert "the models take" not in run_cli("evaluate", model, model, own)[2]
    summary = json.loads(run_cli("evaluate", model, own, "--json")[1])
    assert comparison_notes([summary]) == comparison_notes([summary, summary]) == []
    (note,) = comparison_notes([summary, summary | {"guarantee": "network"}])
    assert "different statements, program and network; compare" in note


def test_a_model_with_other_classes_is_refused(
    run_cli: Cli, model: Path, own: Path, tmp_path: Path
) -> None:
    table = write_list(own / "list.csv", [*listed(own), (listed(own)[0][0], "tortoise")])
    status, _, errors = run_cli("evaluate", model, model, table)
    assert (status, "has no class 'tortoise'" in errors) == (1, True)


def test_intervals_hold_the_shares_and_are_seeded(run_cli: Cli, model: Path, own: Path) -> None:
    summaries = [json.loads(run_cli("evaluate", model, own, "--json")[1]) for _ in range(2)]
    first, second = summaries
    low, high = first["clean_interval"]
    assert low < first["clean_accuracy"] < high
    assert first["certified"] == second["certified"]
    assert first["intervals"]["resamples"] >= 1000
    assert {"level", "method", "seed"} <= first["intervals"].keys()


def test_the_table_has_classes_mistakes_and_intervals(run_cli: Cli, model: Path, own: Path) -> None:
    output = run_cli("evaluate", model, own)[1]
    assert "95 % interval" in output
    assert "quantiles of the radii of right answers" in output
    (row,) = [line.split() for line in output.splitlines() if line.startswith("airplane ")]
    assert row[1] == "2"
    assert "wrong answers have a radius: they are stable, not right" in output
