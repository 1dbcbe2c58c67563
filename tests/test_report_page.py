"""The report of an evaluation: well-formed, self-contained, accessible, and true."""

import base64
import io
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import own_test_set
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lipdeploy import Predictor
from lipdeploy.cli.corruption import corruption_request, run_corruptions
from lipdeploy.datasets import LabelledSources, scan_folder
from lipdeploy.decimals import lower
from lipdeploy.evaluation import STANDARD_RADII, Evaluation, Outcome, outcomes
from lipdeploy.prediction import Certificate, Prediction
from lipdeploy.report.attack import sandwich_summary
from lipdeploy.report.charts import SandwichChart
from lipdeploy.report.evaluation import interval
from lipdeploy.report.page import thumbnail, write_page
from lipdeploy.report.summary import Course, Evaluated, evaluation_summary
from lipdeploy.sandwich import Adversarial, Attacked, Sandwich

Cli = Callable[..., tuple[int, str, str]]
VOID = {"meta", "link", "img", "br"}
ENTRIES = ((36, 12, 15), (72, 8, 14))
ATTACK = {
    "images": 20,
    "attacked": 17,
    "guarantee": "program",
    "settings": {"attacks": ["PGD"], "seed": 3},
    "sandwich": [
        {"radius": r / 255, "radius_255": r, "certified": c, "under_attack": a}
        for r, c, a in reversed(ENTRIES)
    ],
    "broken_certificates": 0,
    "median_ratio": 1.9,
}


class Page(HTMLParser):
    """The elements of a page; fails where they are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.rows = "", list[list[str]]()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The bundled model on the bundled images."""
    own = own_test_set(tmp_path_factory.mktemp("own"), source / "samples")
    return evaluated(source, scan_folder(own, "test"))


def evaluated(source: Path, images: LabelledSources[Path]) -> Evaluated:
    with Predictor(source / "samples" / "model.onnx", compare=True) as predictor:
        images = images.in_order_of(predictor.manifest.classes)
        evaluation = Evaluation(predictor.statements, images.classes)
        for outcome in outcomes(predictor, images):
            evaluation.add(outcome)
        course = Course(1.0, data_sha256=images.sha256())
        summary = evaluation_summary(evaluation, predictor, "own", STANDARD_RADII, course)
    return Evaluated(evaluation, images, summary)


def made(runs: list[Evaluated], folder: Path) -> str:
    write_page(runs, "lipdeploy evaluate model.onnx own", folder / "report.html")
    return (folder / "report.html").read_text()


def with_attack(run: Evaluated, **changes: object) -> Evaluated:
    """The same with what an attack found."""
    return replace(run, summary=run.summary | {"attack": ATTACK | changes})


@pytest.fixture(scope="module")
def with_corruptions(run: Evaluated, source: Path) -> Evaluated:
    """The same with what two corruptions do to a few of the images."""
    request = corruption_request(False, ["contrast,pixelate"], ["1,5"], 0)
    assert request is not None
    with Predictor(source / "samples" / "model.onnx") as predictor:
        few, settings = run.images.spread(5), dict[str, object]()
        found = run_corruptions(Path("a"), predictor, few, STANDARD_RADII, settings, request)
    return replace(run, summary=run.summary | {"corruptions": found})


@pytest.fixture(params=["alone", "with attacks", "with corruptions", "two models"])
def text(request: pytest.FixtureRequest, run: Evaluated, tmp_path: Path) -> str:
    """The report in each of its shapes."""
    if request.param == "two models":
        row = {"exactly": None, "difference": 0.0, "interval": (0.0, 0.0)}
        rows = [row | {"only_this": 0, "only_other": 0}]
        against = {"against": {"model": "first", "differences": rows}}
        return made([run, replace(run, summary=run.summary | against)], tmp_path)
    if request.param == "with corruptions":
        return made([request.getfixturevalue("with_corruptions")], tmp_path)
    return made([with_attack(run) if request.param == "with attacks" else run], tmp_path)


def test_the_page_is_well_formed_and_needs_nothing_from_outside(text: str) -> None:
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not page.all("script")
    for _, attributes in page.found:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "://" not in re.sub(r"<(pre|dd)\b.*?</\1>", "", text, flags=re.DOTALL)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_page_can_be_read_by_everybody(text: str) -> None:
    page = Page(text)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("title")) >= 1
    levels = [int(tag[1]) for tag, _ in page.found if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    pictures = page.all("img")
    assert pictures
    for picture in pictures:
        words = r".+, answered .+, (radius \d+\.\d/255|no radius)"
        assert re.fullmatch(words, picture["alt"] or "")
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [(attributes.get("href") or "") for attributes in page.all("a")]
    assert {link[1:] for link in links} <= set(ids)
    for _, attributes in page.found:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
    assert all(cell.get("scope") in {"col", "row"} for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    regions = [a for _, a in page.found if a.get("role") == "region"]
    assert len(regions) == len(page.all("table"))
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)


def test_every_chart_is_an_image_with_a_name_and_a_description(text: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) == 3 + ("Under attack" in text) + ('id="corruptions"' in text)
    for chart in charts:
        drawn = ElementTree.fromstring(chart)
        assert drawn.get("role") == "img"
        assert len(drawn.findtext("desc") or "") > 40
        _, _, width, height = map(float, (drawn.get("viewBox") or "").split())
        numbers = [
            (float(mark.get("cx", 0)), float(mark.get("cy", 0))) for mark in drawn.iter("circle")
        ]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in numbers)
        for bar in drawn.iter("rect"):
            assert float(bar.get("height", 0)) >= 0
            assert float(bar.get("y", 0)) >= 0


def test_the_page_says_what_the_evaluation_says(run: Evaluated, tmp_path: Path) -> None:
    page = Page(made([run], tmp_path))
    summary = run.summary
    for expected in (
        summary["sha256"],
        summary["content_sha256"],
        summary["data_sha256"],
        summary["engine"],
        *summary["assumptions"],
        "lipdeploy evaluate model.onnx own",
        "That an answer is right",
        "the bytes of a JPEG",
    ):
        assert expected in page.text, expected
    for entry in summary["certified"]:
        (row,) = [row for row in page.rows if row[0] == entry["exactly"]]
        count = entry["images"]
        assert (row[1], row[3]) == (f"{5 * count}.00 %", f"{count}")
        assert row[-1] == str(entry["images_by_statement"]["network"])
    for result in summary["classes"]:
        row = next(row for row in page.rows if row[0] == result["name"])
        assert row[1:3] == ["2", f"{50 * result['correct']}.00 %"]
    assert "Under attack" not in page.text


def test_attacks_have_a_place(run: Evaluated, tmp_path: Path) -> None:
    page = Page(made([with_attack(run)], tmp_path))
    assert "PGD, seed 3, on 20 images" in page.text
    assert "No image was broken within its certified radius" in page.text
    assert "1.90 times the certified radius" in page.text
    changed = with_attack(run, broken_certificates=2, median_ratio=None)
    assert changed.is_contradicted
    broken = Page(made([changed], tmp_path))
    assert "2 certified images were broken within their radius" in broken.text
    assert "The guarantee is not true of this file" in broken.text


def test_corruptions_have_a_place(with_corruptions: Evaluated, tmp_path: Path) -> None:
    page = Page(made([with_corruptions], tmp_path))
    found = with_corruptions.summary["corruptions"]
    assert f"{found['inside_radius']} of 20 corrupted images lie inside" in page.text
    assert "0 break that promise" in page.text
    assert "Nothing is guaranteed about a corruption" in page.text
    for row in found["rows"]:
        severity = str(row["severity"] or "")
        (shown,) = [r for r in page.rows if r[:2] == [row["corruption"], severity]]
        counts = [row["correct"], *(entry["images"] for entry in row["certified"])]
        assert shown[2:7] == [f"{20 * count}.00 %" for count in counts]
        assert shown[-1] == (str(row["inside_radius"]) if severity else "")
    assert not with_corruptions.is_contradicted
    broken = found | {"broken_certificates": 1}
    assert replace(with_corruptions, summary={"corruptions": broken}).is_contradicted


@pytest.mark.parametrize("kind", ["attack", "corruptions"])
def test_a_false_guarantee_is_said_before_anything_else(
    run: Evaluated, with_corruptions: Evaluated, tmp_path: Path, kind: str
) -> None:
    def top(*runs: Evaluated) -> str:
        return made(list(runs), tmp_path).partition('<main id="main">')[2].partition("<dl")[0]

    honest = with_attack(with_corruptions)
    assert not top(honest).strip()
    found = honest.summary | {kind: honest.summary[kind] | {"broken_certificates": 1}}
    broken = replace(honest, summary=found | {"model": "bad.onnx", "guarantee": "network"})
    against = {"against": {"model": "first", "differences": []}}
    second = replace(broken, summary=broken.summary | against)
    for told in (top(broken), top(honest, second)):
        assert told.strip().startswith('<p class="bad">The guarantee network is not true of bad')
        assert told.count("Do not use this file.") == 1


@pytest.mark.parametrize("guarantee", ["program", "network", "no-certified-flip"])
def test_no_more_is_promised_than_the_statement_says(
    run: Evaluated, tmp_path: Path, guarantee: str
) -> None:
    text = Page(made([replace(run, summary=run.summary | {"guarantee": guarantee})], tmp_path)).text
    before = ("up to exactly that size", "no change of the pixels", "no change")
    for words in before:
        said = re.search(
            rf"{words} can (alter the answer|give another class).{{40}}", text, re.DOTALL
        )
        assert said is not None
        assert ("(the engine may" in said[0]) == (guarantee != "program")
    assert "the class stays" not in text


def test_a_length_of_0_is_shown(with_corruptions: Evaluated, tmp_path: Path) -> None:
    """That of an image of one colour whose contrast is lowered."""
    found = with_corruptions.summary["corruptions"]
    rows = [dict(row) for row in found["rows"]]
    rows[1]["median_length_255"] = 0.0
    changed = with_corruptions.summary | {"corruptions": found | {"rows": rows}}
    page = Page(made([replace(with_corruptions, summary=changed)], tmp_path))
    for row in rows:
        severity, length = str(row["severity"] or ""), row["median_length_255"]
        (shown,) = [r for r in page.rows if r[:2] == [row["corruption"], severity]]
        assert shown[-2] == ("" if length is None else f"{lower(length, 1)}/255")


def value_at(points: Sequence[tuple[float, float]], x: float) -> float:
    """Of a line of steps; the later value where it jumps."""
    return [y for at, y in points if at <= x][-1]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.floats(1, 2)), min_size=4, max_size=12),
    st.sets(st.integers(0, 24), min_size=2, max_size=4),
)
def test_the_steps_claim_no_more_than_the_radii_that_were_counted_show(
    made: list[tuple[int, float]], asked: set[int]
) -> None:
    sandwich = Sandwich()
    for radius, factor in made:
        sandwich.add(item_of(radius, math.nextafter(radius * factor, math.inf)))
    radii = [Fraction(radius, 255) for radius in sorted(asked)]
    settings = {"attacks": ["PGD"], "seed": 0}
    found = sandwich_summary(sandwich, radii, "program", settings, [], 1.0)
    above, below = SandwichChart.of(found).known()
    assert above.is_step
    assert below.is_step
    for at in (half / 2 for half in range(2 * max(asked) + 1)):
        exact = Fraction(at) / 255
        assert value_at(above.points, at) >= 100 * sandwich.under_attack(exact) / len(made)
        # At a jump of this line both ends are claimed.
        claimed = [y for x, y in below.points if x < at] or [below.points[0][1]]
        assert claimed[-1] <= 100 * sandwich.certified(exact) / len(made)
    for line, counted in ((above, sandwich.under_attack), (below, sandwich.certified)):
        expected = [(float(255 * r), 100 * counted(r) / len(made)) for r in radii]
        assert line.marks == expected


def item_of(radius_255: float, distance_255: float) -> Attacked:
    certificate = Certificate(radius_255 / 255, radius_255, None, None, "program", (), None)
    pixels = np.zeros((3, 4, 4), dtype=np.float32)
    nearest = Adversarial(pixels, distance_255, 1, "x")
    return Attacked("cat", Prediction("a", "cat", 0, (), certificate), pixels, nearest)


def test_a_single_radius_is_drawn(run: Evaluated, tmp_path: Path) -> None:
    single = with_attack(run, sandwich=ATTACK["sandwich"][:1])
    text = made([single], tmp_path)
    (chart,) = [c for c in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if "sandwich-title" in c]
    drawn = ElementTree.fromstring(chart)
    lines = [path.get("d") or "" for path in drawn.iter("path") if "line" in path.get("class", "")]
    assert sum("H" in line for line in lines) == 2
    assert len(list(drawn.iter("circle"))) == 2


def test_the_truth_lies_between_under_program_only(run: Evaluated, tmp_path: Path) -> None:
    assert "the truth lies between" in Page(made([with_attack(run)], tmp_path)).text
    weaker = Page(made([with_attack(run, guarantee="network")], tmp_path)).text
    assert "truth" not in weaker
    assert "The true accuracy" not in weaker
    assert "allows the engine another class inside of the ball" in weaker


def test_shares_are_those_of_the_counts(run: Evaluated, tmp_path: Path) -> None:
    """29 of 100 as a float is less than 0.29, 7 of 100 times 100 is more than 7."""
    entry = {"radius": 0.1, "radius_255": 25.5, "certified": 29, "under_attack": 57}
    changed = with_attack(run, images=100, attacked=80, sandwich=[entry])
    (row,) = [row for row in Page(made([changed], tmp_path)).rows if row[0] == "25.5/255"]
    assert row[1:] == ["29.00 %", "57.00 %"]
    for count in range(101):
        exact = f"{count}.00 to {count}.00 %"
        assert interval((count / 100, count / 100), 100) == exact
    assert interval((0.12345, 0.12345), 100) == "12.34 to 12.35 %"


def test_a_change_of_the_radius_itself_is_not_said_to_be_covered(
    run: Evaluated, tmp_path: Path
) -> None:
    text = Page(made([run], tmp_path)).text
    assert "A radius larger than 36/255 covers one value moved by 36 steps" in text


def test_names_cannot_write_into_the_page(run: Evaluated, tmp_path: Path) -> None:
    bad = '</title><script>alert(1)</script><img src="http://x.y/z">'
    classes = (bad, *run.images.classes[1:])
    evaluation = Evaluation(classes=classes)
    for logits in ((1.0, 0.0), (0.5, 0.5)):
        evaluation.add(Outcome(classes[1], Prediction("a", bad, 0, logits, None)))
    mistakes = [row | {"predicted": bad} for row in run.summary["mistakes"]]
    summary = run.summary | {"model": bad + "\x1b[2J", "data": bad, "mistakes": mistakes}
    hostile = Evaluated(evaluation, run.images, summary)
    page = Page(made([hostile], tmp_path))
    assert not page.all("script")
    assert all((picture["src"] or "").startswith("data:") for picture in page.all("img"))
    assert "\x1b" not in page.text


def test_nothing_right_and_nothing_certified_is_a_page_too(
    run: Evaluated, source: Path, tmp_path: Path
) -> None:
    cat = source / "samples" / "cat-0000.jpg"
    lonely = LabelledSources("one", run.images.classes, [cat], [0], may_lack_classes=True)
    page = Page(made([evaluated(source, lonely)], tmp_path))
    assert "0.00 %" in page.text


def test_thumbnails_are_small_pictures_of_the_image(source: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("RGB", (900, 300), "red").save(large)
    for path, size in ((large, (96, 32)), (source / "samples" / "cat-0000.jpg", (32, 32))):
        data = thumbnail(path)
        assert data is not None
        encoded = base64.b64decode(data.removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(encoded)).size == size
    assert thumbnail(tmp_path / "gone.png") is None


def test_colours_are_easy_to_tell_from_the_page() -> None:
    """WCAG 2.1: a contrast of 4.5 for text and 3 for lines, in both schemes."""
    import lipdeploy.report

    folder = Path(lipdeploy.report.__file__).parent / "templates"
    blocks = re.findall(r":root \{(.*?)\}", (folder / "style.css").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for ground in ("page", "panel"):
            for name in ("text", "muted", "link", "bad"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for number in range(6):
            assert contrast(colours[f"s{number}"], colours["page"]) >= 3


def contrast(first: str, second: str) -> float:
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    values = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_command_writes_the_report(run_cli: Cli, source: Path, tmp_path: Path) -> None:
    own = own_test_set(tmp_path / "own", source / "samples")
    model, report = source / "samples" / "model.onnx", tmp_path / "report.html"
    status, output, _ = run_cli("evaluate", model, own, "--json", "--report", report)
    page = Page(report.read_text())
    assert status == 0
    assert json.loads(output)["data_sha256"] in page.text
    assert f"lipdeploy evaluate {model} {own} --json --report {report}" in page.text
    wrong = 20 - json.loads(output)["correct"]
    assert len(page.all("img")) == 6 + 6 + wrong


def test_without_jinja_a_report_is_refused_before_any_work(
    run_cli: Cli, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    own = own_test_set(tmp_path / "own", source / "samples")
    model, report = source / "samples" / "model.onnx", tmp_path / "report.html"
    status, output, errors = run_cli("evaluate", model, own, "--report", report)
    assert (status, output) == (1, "")
    assert "--report needs jinja2; pip install 'lipdeploy[report]'" in errors
    assert not report.exists()
