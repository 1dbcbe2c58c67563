"""Recipes: those that come with lipdeploy, those of users, and what becomes of them."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import recipes
import torch
from typer.main import get_command

from lipdeploy.cli import app
from lipdeploy.cli.train import NETWORK, TRAINING
from lipdeploy.datasets import scan_folder
from lipdeploy.errors import UsageError
from lipdeploy.report.planning import write_recipes
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.checkpoint import load_model
from lipdeploy.training.options import TrainingOptions
from lipdeploy.training.recipe import load_recipe, parse_recipe, recipe_names

Cli = Callable[..., tuple[int, str, str]]

EXPECTED = {"annealed", "balanced", "bundled", "clean", "large-radii", "quick"}

pytestmark = pytest.mark.usefixtures("cache")


def test_recipes_are_installed_with_the_package(source: Path) -> None:
    stems = {path.stem for path in (source / "training" / "recipes").glob("*.toml")}
    assert set(recipe_names()) == stems == EXPECTED
    config = tomllib.loads((source / "pyproject.toml").read_text())
    data = config["tool"]["setuptools"]["package-data"]
    assert data["lipdeploy.training"] == ["recipes/*.toml"]


def test_balanced_is_what_happens_without_a_recipe() -> None:
    recipe = load_recipe("balanced")
    assert TrainingOptions(**recipe.training) == TrainingOptions()
    assert Architecture(32, 10, **recipe.network) == Architecture(32, 10)


def test_defaults_of_the_command_are_those_of_the_library() -> None:
    options, shapes = TrainingOptions(), Architecture(32, 10)
    defaults = {p.name: p.default for p in get_command(app).commands["train"].params}
    for field, name in TRAINING.items():
        assert defaults[name] == getattr(options, field), name
    for name in NETWORK:
        assert defaults[name] == getattr(shapes, name), name


def test_annealed_has_the_constants_of_the_paper_in_pixels() -> None:
    training = load_recipe("annealed").training
    assert (training["loss"], training["beta"]) == ("annealed", 5)
    assert 4 * training["offset"] == 2
    assert 4 * training["temperature"] == 0.75


def test_bundled_is_the_recipe_of_the_bundled_model(source: Path) -> None:
    """What the model file says of its training."""
    recipe, model = load_recipe("bundled"), load_model(source / "samples" / "model.pt")
    assert model.network.architecture == recipe.architecture
    words = model.card.command.split()
    said = dict(zip(words[3::2], words[4::2], strict=True))
    del said["--out"]
    flags = {name: f"--{TRAINING.get(name, name)}" for name in recipe.training}
    for name, value in recipe.training.items():
        default = getattr(TrainingOptions(), name)
        assert said.pop(flags[name], str(default)) == str(value), name
    assert said == {"--width": "16"}
    make = (source / "Makefile").read_text()
    assert "--out runs/bundled --recipe bundled" in make


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_what_a_recipe_reached_is_printed_in_a_committed_result(source: Path, name: str) -> None:
    reached = load_recipe(name).reached
    assert reached is not None
    text = (source / reached.printed_in).read_text()
    shares = (reached.clean, reached.certified_36, reached.certified_72, reached.certified_108)
    time = reached.time.split(" on ")[0]
    if name == "bundled":
        assert all(f"{share:.2f} %" in text for share in shares)
        assert time in (source / "samples" / "README.md").read_text()
    else:
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert " / ".join(f"{share:.2f}" for share in shares) in line
        assert f" {time.removesuffix(' seconds')} s, 1000 test images" in line


GOOD = {"purpose": "a test", "network": {"width": 8}, "training": {"epochs": 2}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainings": {}}, "unknown key 'trainings'; expected some of purpose, network, training"),
        ({"purpose": 3}, "purpose: must be text"),
        ({"network": {"widht": 8}}, r"unknown key 'widht' in \[network\].*did you mean width"),
        ({"network": {"image_size": 8}}, "unknown key 'image_size'"),
        ({"network": {"width": "8"}}, "width '8': must be a whole number"),
        ({"network": {"width": 3}}, "--width 3: must be an even number"),
        ({"network": {"width": True}}, "width True: must be a whole number"),
        ({"network": {"head": 1}}, "head 1: must be text"),
        ({"network": {"head": "none"}}, "--head none: expected one of linear, lln, mlp"),
        ({"network": [1]}, r"network: must be a table, \[network\]"),
        ({"training": {"learning_rate": 1}}, "unknown key 'learning_rate'.*expected some of"),
        ({"training": {"device": "cpu"}}, "unknown key 'device'"),
        ({"training": {"lr": "fast"}}, "--lr 'fast': must be a number"),
        ({"training": {"u": -1}}, r"--u -1: must be in \[0, 64\]"),
        ({"training": {"keep": "none"}}, "--keep none: expected one of last, best"),
        ({"reached": {"clean": 99}}, r"\[reached\] lacks on, certified-36"),
        ({"reached": {"best": 99}}, r"unknown key 'best' in \[reached\]"),
    ],
    ids=str,
)
def test_wrong_recipes_name_file_key_and_what_is_allowed(
    change: dict[str, object], message: str
) -> None:
    parse_recipe(GOOD, "good", "good.toml")
    with pytest.raises(UsageError, match=f"^bad.toml: .*{message}"):
        parse_recipe(GOOD | change, "bad", "bad.toml")


@pytest.mark.parametrize(
    "shares", [(50, 60, 40, 30), ("50", 40, 30, 20), (101, 40, 30, 20), (float("nan"), 4, 3, 2)]
)
def test_results_that_cannot_be_are_refused(shares: tuple[object, ...]) -> None:
    keys = ("clean", "certified-36", "certified-72", "certified-108")
    reached = dict(zip(keys, shares, strict=True)) | {"on": "x", "time": "y", "printed-in": "z"}
    with pytest.raises(UsageError, match=r"bad.toml: (accuracies|a larger radius)"):
        parse_recipe(GOOD | {"reached": reached}, "bad", "bad.toml")


@pytest.mark.parametrize(
    "data",
    [b"purpose = ", b"\xff\xfe", b"[" * 10_000, b"a = 1\n" * 20_000, b""],
    ids=["cut", "no text", "deep", "long", "empty"],
)
def test_files_that_are_no_recipe_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"mine\.toml: ") as refused:
        load_recipe(str(path))
    assert "\n" not in str(refused.value)


def test_a_name_that_is_no_recipe_gets_a_suggestion(run_cli: Cli, image_folder: Path) -> None:
    status, _, errors = run_cli("train", image_folder, "--recipe", "balancd")
    assert status == 2
    assert errors.count("\n") == 1
    assert "neither a file nor one of annealed, balanced, bundled" in errors
    assert "did you mean balanced?" in errors


def test_options_win_over_the_recipe_and_both_over_defaults(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    mine, out = tmp_path / "mine.toml", tmp_path / "run"
    mine.write_text(
        'purpose = "a test"\n[network]\nwidth = 6\nhead = "linear"\n'
        '[training]\nepochs = 1\nloss = "annealed"\nt = 0.2\nshift = 2\nbatch = 6\n'
    )
    given = ["--recipe", mine, "--t", "0.3", "--width", "4", "--workers", "1"]
    assert run_cli("train", image_folder, "--out", out, *given)[0] == 0
    model = load_model(out / "model.pt")
    assert (model.network.architecture.width, model.network.architecture.head) == (4, "linear")
    options = TrainingOptions(**model.card.options)
    expected = TrainingOptions(
        recipe="mine", loss="annealed", temperature=0.3, shift=2, epochs=1, batch_size=6
    )
    assert options == expected
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["options"] == model.card.options
    status, _, errors = run_cli("train", image_folder, "--out", out, "--resume", "--recipe", mine)
    assert (status, "leave out --recipe: with --resume" in errors) == (2, True)
    again = run_cli("train", image_folder, "--out", out, "--resume", "--workers", "1")
    assert (again[0], "Nothing was left to do" in again[2]) == (0, True)


def test_recipes_are_listed_with_what_they_reached(run_cli: Cli) -> None:
    status, output, errors = run_cli("train", "--list-recipes")
    assert (status, errors) == (0, "")
    assert max(map(len, output.splitlines())) <= 80
    entries = [" ".join(text.split()) for text in re.split(r"\n(?=\S)", output)]
    rows = {entry.split()[0]: entry for entry in entries}
    assert set(rows) >= EXPECTED
    assert "69.68 / 54.93 / 40.66 / 27.35" in rows["bundled"]
    assert "8,000 test images of cifar10-jpeg" in rows["bundled"]
    assert "benchmarks/results/guarantee-cpu.txt" in rows["bundled"]
    assert "LipConvNet-5, width 8, lln" in rows["quick"]
    assert "u 1.41, t 0.25" in rows["large-radii"]
    assert all("benchmarks/results/" in rows[name] for name in EXPECTED)


def test_a_recipe_that_was_not_measured_is_listed_so(capsys: pytest.CaptureFixture[str]) -> None:
    write_recipes([parse_recipe(GOOD, "mine", "mine.toml")])
    assert "not measured yet" in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_one_lists_the_recipes(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    told = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    status, output, errors = run_cli("train", "--list-recipes")
    assert (status, errors, "bundled " in output) == (0, "", rank == 0)


def test_recipes_are_listed_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from lipdeploy import cli\n"
        "sys.argv = ['lipdeploy', 'train', '--list-recipes']; cli.main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\nbundled " in ended.stdout


def test_the_quick_recipe_learns_something(
    run_cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    status, output, errors = run_cli(
        "train", image_folder, "--out", out, "--recipe", "quick", "--workers", "1"
    )
    assert status == 0
    assert "hardly learned" not in errors
    assert "epoch   5/5" in output


@pytest.mark.slow
def test_the_table_of_all_recipes_is_made_by_the_commands_on_a_part_of_the_images(
    image_folder: Path, tmp_path: Path
) -> None:
    folder = recipes.part_of(image_folder, 16, tmp_path / "part")
    found = scan_folder(folder, "train")
    assert sorted(found.labels) == [0] * 8 + [1] * 8
    line = recipes.measured("quick", folder, tmp_path / "run", epochs=1, test=10)
    assert load_model(tmp_path / "run" / "model.pt").card.options["recipe"] == "quick"
    shares = r"[\d.]+ / [\d.]+ / [\d.]+ / [\d.]+"
    assert re.fullmatch(rf"quick +{shares} +\d+ s, 10 test images", line)
