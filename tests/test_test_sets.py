"""The same images give the same results, however they are stored."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import own_test_set
from shard_files import (
    samples_of,
    table_of,
    tar_of,
    write_parquet,
)

from lipdeploy import Predictor
from lipdeploy.datasets import LabelledSources, scan_folder, scan_test_set
from lipdeploy.evaluation import outcomes

Cli = Callable[..., tuple[int, str, str]]
BROKEN = b"no image"


@pytest.fixture
def own(source: Path, tmp_path: Path) -> Path:
    """The bundled images and one that is broken, as a folder."""
    folder = own_test_set(tmp_path / "own", source / "samples")
    (folder / "test" / "dog" / "dog-0000-broken.jpg").write_bytes(BROKEN)
    return folder


def as_list(folder: Path, images: LabelledSources[Path]) -> str:
    rows = [f"{path},{images.classes[k]}" for k, path in named(images)]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
    return str(folder / "list.csv")


def named(images: LabelledSources[Path]) -> list[tuple[int, Path]]:
    return list(zip(images.labels, images.sources, strict=True))


def contents(images: LabelledSources[Path]) -> tuple[list[bytes], list[str]]:
    names = [images.classes[label] for label in images.labels]
    return [path.read_bytes() for path in images.sources], names


def as_parquet(folder: Path, images: LabelledSources[Path]) -> str:
    return str(write_parquet(folder / "test.parquet", table_of(*contents(images))))


def as_hugging_face(folder: Path, images: LabelledSources[Path]) -> str:
    """Numbers in another order than that of the names; two files, and one of the training part."""
    data, names = contents(images)
    classes = ["unused", *sorted(images.classes, reverse=True)]
    table = table_of(data, [classes.index(name) for name in names], classes, is_struct=True)
    folder /= "data"
    write_parquet(folder / "test-00000-of-00002.parquet", table.slice(0, 9), compression="zstd")
    write_parquet(folder / "test-00001-of-00002.parquet", table.slice(9), data_page_version="2.0")
    write_parquet(folder / "train-00000-of-00001.parquet", table.slice(3, 4))
    return str(folder)


def as_tar(folder: Path, images: LabelledSources[Path]) -> str:
    (folder / "test.tar").write_bytes(tar_of(samples_of(*contents(images))))
    return str(folder / "test.tar")


def as_tars_with_numbers(folder: Path, images: LabelledSources[Path]) -> str:
    """As a pattern; the names of the classes are in the last file."""
    data, names = contents(images)
    order = sorted(images.classes, reverse=True)
    files = samples_of(data, [order.index(name) for name in names])
    lines = "".join(f"{name}\r\n" for name in order).encode()
    (folder / "t-008.tar").write_bytes(tar_of(files[:10]))
    (folder / "t-009.tar").write_bytes(tar_of([]))
    (folder / "t-010.tar").write_bytes(tar_of([*files[10:], ("classes.txt", lines)]))
    return str(folder / "t-{008..010}.tar")


def as_tars_with_json(folder: Path, images: LabelledSources[Path]) -> str:
    """In the folder `test`, with the names of the classes beside it, as CLIP's benchmark has it."""
    data, names = contents(images)
    folder /= "wds"
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(images.classes))
    labels = [json.dumps({"label": images.classes.index(name)}) for name in names]
    (folder / "test" / "0.tar").write_bytes(tar_of(samples_of(data, labels, "json")))
    return str(folder)


KINDS = [
    as_list,
    as_parquet,
    as_hugging_face,
    as_tar,
    as_tars_with_numbers,
    as_tars_with_json,
]


@pytest.mark.parametrize("write", KINDS)
def test_the_same_images_give_the_same_evaluation_however_they_are_stored(
    own: Path,
    small_engine: Path,
    tmp_path: Path,
    write: Callable[[Path, LabelledSources[Path]], str],
) -> None:
    folder = scan_folder(own, "test")
    stored = scan_test_set(write(tmp_path, folder))
    assert stored.classes == folder.classes
    assert stored.sha256() == folder.sha256()
    with Predictor(small_engine, batch_size=4) as predictor:
        found, expected = (
            list(outcomes(predictor, images.in_order_of(predictor.manifest.classes)))
            for images in (stored, folder)
        )
    assert len(found) == 21
    for one, other in zip(found, expected, strict=True):
        assert one == replace(other, result=replace(other.result, path=one.result.path))
    assert len({outcome.result.path for outcome in found}) == 21


def test_limit_report_and_csv_work_as_with_a_folder(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    folder = scan_folder(own, "test")
    rows = []
    for number, dataset in enumerate(
        [str(own), as_parquet(tmp_path, folder), as_tar(tmp_path, folder)]
    ):
        table, page = tmp_path / f"{number}.csv", tmp_path / f"{number}.html"
        arguments = ["--limit", "11", "--csv", table, "--report", page, "--json"]
        status, output, _ = run_cli("evaluate", small_engine, dataset, *arguments)
        assert (status, json.loads(output)["images"]) == (0, 11)
        assert page.read_text().count("data:image/png;base64,") >= 6
        rows.append(list(csv.DictReader(io.StringIO(table.read_text()))))
    paths = [[row.pop("path") for row in part] for part in rows]
    assert rows[0] == rows[1] == rows[2]
    spread = [index * 21 // 11 for index in range(11)]
    assert paths[1] == [f"{tmp_path / 'test.parquet'}#{index}" for index in spread]
    assert paths[2] == [f"{tmp_path / 'test.tar'}/{index:04d}.jpg" for index in spread]


def test_an_evaluation_is_gone_on_with_from_the_same_images_in_another_file(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    folder = scan_folder(own, "test")
    results: list[Path | str] = ["--resume", tmp_path / "results", "--json", "--batch", "4"]
    first = run_cli("evaluate", small_engine, as_parquet(tmp_path, folder), *results)
    again = run_cli("evaluate", small_engine, as_tar(tmp_path, folder), *results)
    summaries = [json.loads(output) for _, output, _ in (first, again)]
    assert [summary["resumed"] for summary in summaries] == [0, 21]
    assert summaries[0]["classes"] == summaries[1]["classes"]
    changed = samples_of(*contents(folder))
    (tmp_path / "other.tar").write_bytes(tar_of(changed[2:]))
    status, _, errors = run_cli("evaluate", small_engine, tmp_path / "other.tar", *results)
    assert status == 1
    assert "begun with another dataset" in errors


def test_stored_images_are_attacked(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    folder = scan_folder(own, "test")
    found = []
    for dataset in (str(own), as_parquet(tmp_path, folder), as_tar(tmp_path, folder)):
        arguments = ["--attack", "--attack-images", "2", "--radii", "36/255", "--json"]
        output = run_cli("evaluate", small_engine, dataset, *arguments)[1]
        attack: dict[str, Any] = json.loads(output)["attack"]
        times = {"seconds", "seconds_per_image"}
        attack = {name: value for name, value in attack.items() if name not in times}
        found.append(attack)
    assert found[0] == found[1] == found[2]
    assert found[0]["images"] == 2


def test_a_benchmark_compares_answers_on_stored_images(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    (own / "test" / "dog" / "dog-0000-broken.jpg").unlink()
    answers = []
    for dataset in (str(own), as_tar(tmp_path, scan_folder(own, "test"))):
        arguments = ["--data", dataset, "--batch", "4", "--seconds", "0.05", "--json"]
        status, output, _ = run_cli("benchmark", small_engine, *arguments)
        answers.append({name: json.loads(output)[name] for name in ("images", "clean_accuracy")})
        assert status == 0
    assert answers[0] == answers[1]
    assert answers[0]["images"] == 20


def test_stored_images_can_be_predicted_one_by_one(
    own: Path, small_engine: Path, tmp_path: Path
) -> None:
    source = scan_test_set(as_parquet(tmp_path, scan_folder(own, "test"))).sources[0]
    with Predictor(small_engine) as predictor:
        (prediction,) = predictor(source)
    assert prediction.path == f"{tmp_path / 'test.parquet'}#0"


def test_a_model_with_other_classes_is_refused(
    run_cli: Cli, own: Path, small_engine: Path, tmp_path: Path
) -> None:
    data, labels = contents(scan_folder(own, "test"))
    for label, hint in (("shpi", "did you mean ship"), ("unicorn", "it knows airplane")):
        wrong = [label if name == "ship" else name for name in labels]
        write_parquet(tmp_path / "a.parquet", table_of(data, wrong))
        (tmp_path / "a.tar").write_bytes(tar_of(samples_of(data, wrong)))
        for name in ("a.parquet", "a.tar"):
            status, _, errors = run_cli("evaluate", small_engine, tmp_path / name)
            assert status == 1
            assert f"the model has no class {label!r}" in errors
            assert hint in errors
