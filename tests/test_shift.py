"""Answers under corruptions: what is counted, and that false certificates fall."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import NotedPaths, own_test_set
from PIL import Image

from lipdeploy import Predictor
from lipdeploy.corruptions import UNCHANGED, Way, corrupted
from lipdeploy.datasets import LabelledSources, scan_folder
from lipdeploy.errors import ImageError
from lipdeploy.evaluation import STANDARD_RADII, Evaluation, outcomes
from lipdeploy.exporters.onnx_file import onnx_bytes, read_onnx
from lipdeploy.images import StoredImage, network_input
from lipdeploy.prediction import Failure, Prediction
from lipdeploy.predictor import DECODERS
from lipdeploy.shift import Shift, Shifted, shifted

Cli = Callable[..., tuple[int, str, str]]
WAYS = (Way("gaussian_blur", 1), Way("jpeg_compression", 1), Way("gaussian_noise", 5))


@pytest.fixture
def own(source: Path, tmp_path: Path) -> Path:
    """The bundled images as a test set."""
    return own_test_set(tmp_path / "own", source / "samples")


def answered(
    model: Path, images: LabelledSources[Path], ways: Sequence[Way] = WAYS, **settings: int
) -> list[Shifted]:
    with Predictor(model, **settings) as predictor:
        images = images.in_order_of(predictor.manifest.classes)
        return list(shifted(predictor, images, ways, 0))


def saved(folder: Path, own: Path, way: Way, size: int) -> LabelledSources[Path]:
    """The test set as files of the network's size, corrupted in one way."""
    for path in (own / "test").rglob("*.jpg"):
        values = np.rint(network_input(path, size).pixels).astype(np.uint8)
        target = folder / path.relative_to(own).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.ascontiguousarray(values.transpose(1, 2, 0))
        Image.fromarray(corrupted(pixels, way, 0)).save(target)
    return scan_folder(folder, "test")


@pytest.mark.parametrize(("engine", "size"), [("bundled", 32), ("small", 8)])
def test_the_table_is_that_of_images_that_were_corrupted_before(
    run_cli: Cli,
    source: Path,
    own: Path,
    small_engine: Path,
    tmp_path: Path,
    engine: str,
    size: int,
) -> None:
    """The small network has 8 x 8 pixels, so that images are resized and rounded first."""
    model = source / "samples" / "model.onnx" if engine == "bundled" else small_engine
    given = ("--corruption", "jpeg_compression,gaussian_noise", "--severity", "5,2")
    status, output, _ = run_cli("evaluate", model, own, *given, "--json")
    rows = json.loads(output)["corruptions"]["rows"]
    ways = [Way(row["corruption"], row["severity"]) for row in rows]
    noises = [Way("gaussian_noise", 2), Way("gaussian_noise", 5)]
    assert status == 0
    assert ways[:3] == [UNCHANGED, *noises]
    assert ways[3:] == [Way("jpeg_compression", 2), Way("jpeg_compression", 5)]
    with Predictor(model) as predictor:
        for way, row in zip(ways, rows, strict=True):
            evaluation = Evaluation()
            for outcome in outcomes(predictor, saved(tmp_path / str(way), own, way, size)):
                evaluation.add(outcome)
            assert (row["images"], row["correct"]) == (20, evaluation.correct)
            for entry, radius in zip(row["certified"], STANDARD_RADII, strict=True):
                assert entry["images"] == evaluation.certified(radius)
            average = evaluation.average_certified_radius
            assert row["average_certified_radius"] == pytest.approx(average, rel=1e-4)


def test_sums_are_those_of_the_rows(run_cli: Cli, small_engine: Path, own: Path) -> None:
    given = ("--corruption", "contrast", "--corruption", "brightness", "--severity", "1,4")
    found = json.loads(run_cli("evaluate", small_engine, own, *given, "--json")[1])["corruptions"]
    _, *rows = found["rows"]
    assert [entry["severity"] for entry in found["all_by_severity"]] == [1, 4]
    for entry in (*found["all_by_severity"], found["all"]):
        same = [row for row in rows if entry["severity"] in {None, row["severity"]}]
        assert entry["images"] == 20 * len(same)
        assert entry["correct"] == sum(row["correct"] for row in same)
        assert entry["accuracy"] == pytest.approx(sum(r["accuracy"] for r in same) / len(same))
        for index, counted in enumerate(entry["certified"]):
            assert counted["images"] == sum(row["certified"][index]["images"] for row in same)
    assert found["corrupted"] == 80


def test_another_seed_is_another_noise(run_cli: Cli, small_engine: Path, own: Path) -> None:
    given = ("evaluate", small_engine, own, "--json", "--limit", "10", "--corruption")
    found = [
        json.loads(run_cli(*given, "shot_noise", "--corruption-seed", seed)[1])["corruptions"]
        for seed in ("0", "0", "1")
    ]
    first, same, other = (f["rows"][5]["median_length_255"] for f in found)
    assert first == same != other
    assert [f["seed"] for f in found] == [0, 0, 1]


def test_views_and_answers_do_not_depend_on_batch_limit_or_order(source: Path, own: Path) -> None:
    model, images = source / "samples" / "model.onnx", scan_folder(own, "test")
    few = replace(images, sources=images.sources[15:4:-5], labels=images.labels[15:4:-5])
    known = {(i.view.name, i.view.way): i for i in answered(model, images, batch_size=64)}
    again = answered(model, few, batch_size=3)
    assert len(known) == 20 * 4
    assert len(again) == 3 * 4
    for item in again:
        before = known[item.view.name, item.view.way]
        np.testing.assert_array_equal(item.view.pixels, before.view.pixels)
        assert item.outcome.true_class == before.outcome.true_class
        assert item.outcome.result.label == before.outcome.result.label
        assert item.outcome.result.radius == pytest.approx(before.outcome.result.radius, rel=1e-4)


def test_inside_counts_exactly_the_images_that_a_certificate_speaks_of(
    source: Path, own: Path
) -> None:
    shifts = {way: Shift(way, ()) for way in (UNCHANGED, *WAYS)}
    inside = dict.fromkeys(shifts, 0)
    lengths: dict[Way, list[float]] = {way: [] for way in shifts}
    for item in answered(source / "samples" / "model.onnx", scan_folder(own, "test")):
        view = item.view
        shifts[view.way].add(item)
        length = np.linalg.norm(view.clean.astype(float) - view.pixels)
        lengths[view.way].append(length)
        if view.way != UNCHANGED and length < item.clean.certificate.radius_255:
            inside[view.way] += 1
            assert item.outcome.result.label == item.clean.label
    assert {way: shift.inside for way, shift in shifts.items()} == inside
    assert inside[WAYS[0]] > 0
    assert inside[WAYS[2]] == 0
    assert not any(shift.broken for shift in shifts.values())
    assert shifts[UNCHANGED].median_length_255 is None
    for way in WAYS:
        assert shifts[way].median_length_255 == pytest.approx(np.median(lengths[way]))


def test_no_more_images_are_held_than_are_read_ahead(small_engine: Path, own: Path) -> None:
    folder = scan_folder(own, "test")
    sources = NotedPaths(folder.sources)
    images = replace(folder, sources=sources)
    with Predictor(small_engine, batch_size=4) as predictor:
        items = shifted(predictor, images, WAYS, 0)
        for done, _ in enumerate(items, start=1):
            held = done + 8 + max(4, DECODERS) + DECODERS
            assert 4 * (len(sources.taken) - 1 - DECODERS) <= held
    assert len(sources.taken) == 20


def test_images_that_cannot_be_read_count_as_wrong_everywhere(
    run_cli: Cli, small_engine: Path, own: Path
) -> None:
    given = ("--corruption", "pixelate", "--severity", "3", "--json")
    before = json.loads(run_cli("evaluate", small_engine, own, *given)[1])["corruptions"]
    (own / "test" / "cat" / "bad.png").write_text("no image")
    status, output, errors = run_cli("evaluate", small_engine, own, *given)
    after = json.loads(output)["corruptions"]
    assert (status, errors.count("bad.png")) == (1, 1)
    for one, other in zip(before["rows"], after["rows"], strict=True):
        assert (other["images"], other["unreadable"]) == (21, 1)
        assert other["correct"] == one["correct"]
        assert other["median_length_255"] == one["median_length_255"]
    assert after["corrupted"] == before["corrupted"] == 20
    given = ("evaluate", small_engine, own, "--corruption", "pixelate", "--severity", "3")
    assert f"{before['inside_radius']} of 20 corrupted images" in run_cli(*given)[1]


def test_an_image_is_read_once_and_stays_unreadable(small_engine: Path, own: Path) -> None:
    """A file that appears later, as on a disk of a network that comes back, is no other image."""
    folder = scan_folder(own, "test")

    class Late(StoredImage):
        reads = 0

        @property
        def name(self) -> str:
            return "late"

        def read(self) -> bytes:
            self.reads += 1
            if self.reads == 1:
                raise ImageError("the disk is away")
            return folder.sources[0].read_bytes()

    late = Late()
    sources = [folder.sources[0], late, *folder.sources[1:], late]
    images = replace(folder, sources=sources, labels=[0, 0, *folder.labels[1:], 0])
    first, *rest = (i for i in answered(small_engine, images) if i.view.name == "late")
    assert [first.view.way, *(i.view.way for i in rest[:3])] == [UNCHANGED, *WAYS]
    assert late.reads == 2
    for item in (first, *rest[:3]):
        assert item.pair is None
        assert item.outcome.result == Failure("late", "the disk is away")
    assert all(isinstance(item.outcome.result, Prediction) for item in rest[3:])


def test_images_none_of_which_can_be_read_have_answers_all_the_same(
    small_engine: Path, own: Path
) -> None:
    folder = scan_folder(own, "test")
    images = replace(folder, sources=[b"no image"] * len(folder.sources))
    found = answered(small_engine, images)
    assert [item.view.name for item in found] == [f"#{i}" for i in range(20) for _ in range(4)]
    assert all(isinstance(item.outcome.result, Failure) for item in found)


def test_the_table_says_what_is_not_guaranteed(
    run_cli: Cli, source: Path, small_engine: Path, own: Path
) -> None:
    models = (source / "samples" / "model.onnx", small_engine)
    given = ("--corruption", "gaussian_blur", "--severity", "1", "--limit", "10")
    status, output, errors = run_cli("evaluate", *models, own, *given)
    assert status == 0
    lines = [line.split() for line in output.splitlines()]
    assert [line[:2] for line in lines if line[:1] == ["gaussian_blur"]] == [
        ["gaussian_blur", "1"]
    ] * 2
    assert output.count("corrupted images lie inside of the radius of the image") == 2
    assert output.count("0 break that promise") == 2
    for model in models:
        assert [str(model)] in lines
    assert errors.count("nothing is guaranteed about a corruption") == 2
    assert "32 x 32 pixels" in errors
    assert "8 x 8 pixels" in errors


# planted unsound models


@pytest.fixture
def planted(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bundled engine, with a bound of how far features can move that is 20 times too small."""
    monkeypatch.chdir(tmp_path)
    honest = read_onnx(source / "samples" / "model.onnx")
    manifest = replace(honest.manifest, lipschitz_upper=honest.manifest.lipschitz_upper / 20)
    manifest = replace(manifest, sha256=manifest.digest(honest.network.weights()))
    Path("planted.onnx").write_bytes(onnx_bytes(honest.network, manifest))
    return "planted.onnx"


@pytest.mark.parametrize("guarantee", ["program", "network"])
def test_a_false_certificate_is_caught_told_and_can_be_seen_again(
    run_cli: Cli, planted: str, own: Path, guarantee: str
) -> None:
    given = ("--corruption", "brightness,contrast", "--guarantee", guarantee)
    status, output, errors = run_cli("evaluate", planted, own, *given, "--json")
    found = json.loads(output)["corruptions"]
    assert status == 1
    broken = found["broken_certificates"]
    assert 0 < broken <= found["inside_radius"]
    assert broken == sum(row["broken_certificates"] for row in found["rows"])
    assert errors.count("SOUNDNESS FAILURE") == len(found["pairs"]) == min(broken, 10)
    told = next(line for line in errors.splitlines() if "SOUNDNESS FAILURE" in line)
    assert "of severity" in told
    command = shlex.split(told.partition("type: ")[2])
    status, output, errors = run_cli(*command[1:])
    assert (status, "contradict the guarantee" in errors) == (1, True)


def test_the_last_line_of_a_false_model_is_red_and_an_error(
    run_cli: Cli, planted: str, own: Path, tmp_path: Path
) -> None:
    given = ("--corruption", "contrast", "--severity", "5", "--report", "report.html")
    status, output, errors = run_cli("evaluate", planted, own, *given)
    assert status == 1
    assert "0 break that promise" not in output
    assert "contradict the guarantee program, expected 0: the certificates are false" in errors
    page = (tmp_path / "report.html").read_text()
    assert '<p class="bad">' in page.partition('id="corruptions"')[2][:200]


def evidence() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("broken-certificates").iterdir()}


def test_evidence_is_never_written_over_evidence(run_cli: Cli, planted: str, own: Path) -> None:
    """Each model, each kind and each run begin to count anew; the folder is the same."""
    other = Path("other.onnx")
    other.write_bytes(Path(planted).read_bytes())
    given = (own, "--corruption", "contrast", "--severity", "4,5", "--json")
    _, output, _ = run_cli("evaluate", planted, other, *given)
    pairs = [
        pair for line in output.splitlines() for pair in json.loads(line)["corruptions"]["pairs"]
    ]
    assert {pair["model"] for pair in pairs} == {planted, "other.onnx"}
    before = evidence()
    _, output, _ = run_cli("evaluate", planted, *given, "--attack", "--attack-images", "5")
    found = json.loads(output)
    assert found["attack"]["pairs"]
    pairs += found["attack"]["pairs"] + found["corruptions"]["pairs"]
    assert evidence().items() >= before.items()
    assert len({pair["original"] for pair in pairs}) == len(pairs)
    for pair in pairs:
        record = Path(pair["original"].replace("-original.npy", ".json"))
        assert json.loads(record.read_text()) == pair
    assert len(evidence()) == 5 * len(pairs)


def test_the_record_of_a_pair_says_what_was_promised_and_what_it_is(
    run_cli: Cli, planted: str, own: Path
) -> None:
    """Wrong answers have certificates, too; here all images lie in a folder of another class."""
    folders = sorted((own / "test").iterdir())
    for folder in folders:
        folder.rename(folder.with_suffix(".moved"))
    for folder, before in zip(folders, folders[1:] + folders[:1], strict=True):
        before.with_suffix(".moved").rename(folder)
    given = ("--corruption", "contrast", "--severity", "5", "--json")
    _, output, errors = run_cli("evaluate", planted, own, *given)
    pairs = json.loads(output)["corruptions"]["pairs"]
    assert any(pair["class"] != pair["certified_class"] for pair in pairs)
    for pair in pairs:
        assert Path(pair["path"]).parent.name == pair["class"]
        assert pair["certified_class"] != pair["adversarial_class"]
        assert (pair["corruption"], pair["severity"]) == ("contrast", 5)
        assert "attack" not in pair
        words = f"{pair['path']}: certified {pair['certified_class']} within"
        assert words in errors
        assert f"but contrast of severity 5 made it {pair['adversarial_class']}" in errors
