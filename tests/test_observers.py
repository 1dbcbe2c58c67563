"""Those who watch a run: curves as a picture, and TensorBoard."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lipdeploy.plots import write_learning_curves
from lipdeploy.report.training import LearningCurves
from lipdeploy.training.metrics import MetricsTable
from lipdeploy.training.observers import Observers
from lipdeploy.training.tensorboard import FOLDER_NAME, TAGS

Cli = Callable[..., tuple[int, str, str]]
SMALL = ["--width", "4", "--batch", "6", "--workers", "1", "--lr", "0.05", "--validation", "0.25"]

pytestmark = pytest.mark.usefixtures("cache")


def train(run_cli: Cli, folder: Path, out: Path, *more: str) -> tuple[int, str, str]:
    return run_cli("train", folder, "--out", out, *SMALL, "--epochs", "2", *more)


def test_a_run_ends_with_a_picture_of_its_curves(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train(run_cli, image_folder, out)[0] == 0
    with Image.open(out / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300
    (out / "curves.png").unlink()
    again = run_cli("train", image_folder, "--out", out, "--resume", "--workers", "1")
    assert again[0] == 0
    assert not (out / "curves.png").exists(), "there was nothing new to draw"


def test_without_matplotlib_a_run_says_so_in_one_line_and_is_fine(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, errors = train(run_cli, image_folder, tmp_path / "run")
    assert status == 0
    assert errors.count("No curves.png: that needs matplotlib; pip install 'lipdeploy[plot]'") == 1
    assert not (tmp_path / "run" / "curves.png").exists()


def test_a_picture_that_cannot_be_written_does_not_fail_the_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n1,0.5\n2,0.4\n")
    curves = LearningCurves(MetricsTable(path), tmp_path / "gone")
    curves.draw()
    assert capsys.readouterr().err == ""
    curves.epoch(None)
    curves.draw()
    assert "cannot be written" in capsys.readouterr().err


def test_what_was_not_measured_is_left_out_of_the_picture(tmp_path: Path) -> None:
    rows = [{"epoch": 1.0, "loss": 0.5, "accuracy": 0.5}, {"epoch": 2.0, "loss": float("nan")}]
    rows[1]["accuracy"] = 0.6
    write_learning_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_all_observers_are_told_in_their_order() -> None:
    heard: list[object] = []

    class Ear:
        def __init__(self, name: str) -> None:
            self.name = name

        def step(self, *values: float) -> None:
            heard.append((self.name, values))

        def epoch(self, metrics: object) -> None:
            heard.append((self.name, metrics))

    both = Observers(Ear("a"), Ear("b"))
    both.step(1, 2, 3, 0.5, 0.6)
    both.epoch("row")
    assert heard == [
        ("a", (1, 2, 3, 0.5, 0.6)),
        ("b", (1, 2, 3, 0.5, 0.6)),
        ("a", "row"),
        ("b", "row"),
    ]


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own modules
def test_tensorboard_gets_what_the_table_has_and_a_resumed_run_goes_on(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", exc_type=ImportError)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert train(run_cli, image_folder, out, "--tensorboard")[0] == 0
    again = ["--out", out, "--resume", "--workers", "1", "--tensorboard"]
    assert run_cli("train", image_folder, *again)[0] == 0
    events = EventAccumulator(str(out / FOLDER_NAME)).Reload()
    rows = MetricsTable(out / "metrics.csv").rows()
    assert set(events.Tags()["scalars"]) == set(TAGS.values())
    for name, tag in TAGS.items():
        found = {event.step: event.value for event in events.Scalars(tag)}
        expected = {int(r["epoch"]): r[name] for r in rows if r[name] == r[name]}
        assert found == pytest.approx(expected), tag


def test_without_tensorboard_the_option_is_refused_before_anything_is_done(
    run_cli: Cli, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith(("tensorboard", "torch.utils.tensorb"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    status, output, errors = train(run_cli, image_folder, tmp_path / "run", "--tensorboard")
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert "pip install 'lipdeploy[tensorboard]'" in errors
    assert not (tmp_path / "run").exists()
