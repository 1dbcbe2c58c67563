"""The command line as a whole: help, completion, colours, pipes, how much it says, versions."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from lipdeploy.cli import app, entry
from lipdeploy.decimals import float_lower, in_255ths, lower, upper
from lipdeploy.errors import UsageError
from lipdeploy.report.console import visible
from lipdeploy.report.inspection import _form

Cli = Callable[..., tuple[int, str, str]]
COMMANDS = get_command(app).commands


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "TERM"}}
    return subprocess.run(
        [sys.executable, "-m", "lipdeploy", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=clean | {"TERM": "xterm-256color"} | environment,
    )


@pytest.fixture
def one_image(source: Path) -> list[str | Path]:
    samples = source / "samples"
    return ["predict", samples / "cat-0000.jpg", "--certify", "--model", samples / "model.onnx"]


def test_every_command_and_option_has_help_and_an_example() -> None:
    names = {"train", "export", "predict", "evaluate", "check-pair", "inspect", "verify"}
    names |= {"benchmark", "doctor"}
    assert set(COMMANDS) == names
    for name, command in COMMANDS.items():
        assert f"Example: lipdeploy {name} " in command.help
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"
    for parameter in get_command(app).params:
        assert parameter.help, parameter.name


def test_every_command_and_option_is_documented(source: Path) -> None:
    text = (source / "docs" / "commands.md").read_text()
    head = text.split("\n## ")[0]
    sections = dict(
        re.findall(r"^## `lipdeploy ([\w-]+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.M)
    )
    assert set(sections) == set(COMMANDS)
    for name, command in COMMANDS.items():
        for parameter in command.params:
            for option in [o for o in parameter.opts if o.startswith("--")]:
                assert f"`{option}" in head + sections[name], f"{name} {option}: run make docs"


def test_the_reference_is_what_the_commands_say(source: Path) -> None:
    made = subprocess.run(
        [sys.executable, source / "docs" / "make_commands.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (source / "docs" / "commands.md").read_text() == made.stdout, "run make docs"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_is_printed(run_cli: Cli, command: list[str]) -> None:
    for flag in ("--help", "-h"):
        status, output, errors = run_cli(*command, flag)
        assert (status, errors) == (0, "")
        assert "Usage: lipdeploy" in output
    assert run_cli()[1] == run_cli("--help")[1]


def test_the_versions_that_matter_are_shown(run_cli: Cli) -> None:
    import lipdeploy

    status, output, _ = run_cli("--version")
    found = dict(line.split(" ", maxsplit=1) for line in output.splitlines())
    assert status == 0
    assert output.splitlines()[0] == f"lipdeploy {lipdeploy.__version__}"
    assert {"numpy", "onnx", "onnxruntime", "pillow", "python", "system", "torch"} <= set(found)
    assert found["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lipdeploy ev", {"evaluate"}),
        ("lipdeploy export --eng", {"--engine"}),
        ("lipdeploy train --head l", {"linear", "lln"}),
        ("lipdeploy predict --device c", {"cpu", "cuda"}),
        ("lipdeploy train cif", {"cifar10", "cifar100"}),
    ],
)
def test_the_shell_completes_commands_options_and_values(words: str, expected: set[str]) -> None:
    found = run(
        _LIPDEPLOY_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
    )
    assert found.stdout.split() == sorted(expected), found.stderr


def test_completion_can_be_installed() -> None:
    found = run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete_bash" in found.stdout


def test_output_in_a_pipe_has_no_control_characters(one_image: list[str | Path]) -> None:
    found = run(*one_image)
    assert "/255" in found.stdout
    assert "\x1b" not in found.stdout + found.stderr


def test_a_verification_says_how_far_it_is_on_a_screen_only(small_engine: Path) -> None:
    arguments = ["verify", small_engine]
    piped, quiet = run(*arguments), run(*arguments, "--quiet", FORCE_COLOR="1", TERM="xterm")
    assert (piped.stderr, quiet.stderr) == ("", "")
    shown = run(*arguments, FORCE_COLOR="1", TERM="xterm")
    assert "verify: 0 checks done" in shown.stderr
    assert "checks done, the last: norm of layer 0" in shown.stderr
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", shown.stdout)
    assert plain == piped.stdout == quiet.stdout


def test_no_color_means_no_colour(one_image: list[str | Path]) -> None:
    colour = re.compile(r"\x1b\[(?:\d+;)*[34]\d")
    assert colour.search(run(*one_image, FORCE_COLOR="1").stdout)
    plain = run(*one_image, FORCE_COLOR="1", NO_COLOR="1")
    assert not colour.search(plain.stdout + plain.stderr)
    assert not colour.search(run("predict", "--modle", FORCE_COLOR="1", NO_COLOR="1").stderr)


def test_quiet_shows_results_only_and_verbose_more(
    run_cli: Cli, one_image: list[str | Path]
) -> None:
    plain, quiet, verbose = (run_cli(*one_image, *more) for more in ([], ["-q"], ["-v"]))
    assert plain[1] == quiet[1] == verbose[1]
    assert quiet[2] == ""
    assert "guarantee program" in plain[2]
    assert without_times(plain[2]) in without_times(verbose[2])
    assert "onnxruntime" in verbose[2].splitlines()[0]
    assert run_cli("--quiet", *one_image)[2] == ""
    assert without_times(run_cli(*one_image)[2]) == without_times(plain[2])


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\d+ s\b", "some time", text)


def test_a_reader_that_has_enough_is_no_error(one_image: list[str | Path]) -> None:
    command = [sys.executable, "-m", "lipdeploy", *map(str, one_image), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_output_that_cannot_be_written_is_one_line(one_image: list[str | Path]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "lipdeploy", *map(str, one_image)]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == "Error: output: No space left on device"


def test_debug_shows_the_traceback(run_cli: Cli, one_image: list[str | Path]) -> None:
    for arguments in (["--debug", *one_image], [*one_image, "--debug"]):
        with pytest.raises(UsageError):
            run_cli(*arguments, "--json", "--csv")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (MemoryError(), 1, "not enough memory; try a smaller --batch"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "a.csv"), 1, "a.csv: Permission denied"),
        (ZeroDivisionError("two\nlines"), 1, "unexpected ZeroDivisionError: two lines; please rep"),
    ],
    ids=str,
)
def test_what_nobody_foresaw_is_one_line_too(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(entry, "app", fail)
    found, output, errors = run_cli("predict", "x")
    assert (found, output, errors.count("\n")) == (status, "", 1)
    assert errors.startswith(f"Error: {message}")


def test_an_engine_is_described_with_its_layers_and_bounds(run_cli: Cli, source: Path) -> None:
    path = source / "samples" / "model.onnx"
    facts = json.loads(run_cli("inspect", path, "--json")[1])
    assert facts["kind"] == "engine (ONNX)"
    assert facts["bytes"] == path.stat().st_size
    assert len(facts["classes"]) == 10
    linear = [o for o in facts["operations"] if o["kind"] == "linear"]
    assert len(linear) == 6
    product = 1.0
    for layer in linear:
        product *= layer["norm_upper"]
    assert product == pytest.approx(facts["lipschitz_upper"], rel=1e-12)
    stored = sum(operation["bytes"] for operation in facts["operations"])
    assert 0.9 * facts["bytes"] < stored < facts["bytes"]
    status, output, errors = run_cli("inspect", path)
    assert (status, errors) == (0, "")
    assert "4.006963 for pixels in [0, 1]" in output
    assert facts["sha256"] in output
    assert (facts["build"], "None" in output) == (None, False)
    assert {layer["form"] for layer in linear} == {"spectral", "fused", "pointwise"}
    rows = [line.split() for line in output.splitlines() if line.startswith("linear  ")]
    assert [row[1] for row in rows] == [layer["form"] for layer in linear]
    assert {"copies": 1} in [layer["parameters"] for layer in linear]


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({"copies": 1}, "fused"),
        ({"copies": 1, "products": "rows"}, "fused rows"),
        ({"copies": 2, "products": "vectors"}, "fused x2 vectors"),
        ({}, "fused"),
    ],
)
def test_inspect_shows_how_blocks_are_multiplied(parameters: dict[str, object], shown: str) -> None:
    assert " ".join(_form({"form": "fused", "parameters": parameters})) == shown


def test_a_model_and_a_checkpoint_are_described(
    run_cli: Cli, source: Path, image_folder: Path, tmp_path: Path, cache: Path
) -> None:
    facts = json.loads(run_cli("inspect", source / "samples" / "model.pt", "--json")[1])
    assert facts["kind"] == "trained model"
    assert facts["architecture"]["width"] == 16
    assert facts["source"]["epochs"] == 30
    assert "trained model" in run_cli("inspect", source / "samples" / "model.pt")[1]
    settings = ["--width", "4", "--epochs", "1", "--batch", "6", "--out", tmp_path / "run"]
    assert run_cli("train", image_folder, *settings)[0] == 0
    facts = json.loads(run_cli("inspect", tmp_path / "run" / "checkpoint.pt", "--json")[1])
    assert (facts["kind"], facts["finished_epochs"]) == ("checkpoint", 1)
    assert facts["options"]["batch_size"] == 6


def test_shown_numbers_stay_bounds() -> None:
    assert (upper(Fraction(1), 3), upper(Fraction(10001, 10000), 3)) == ("1.000", "1.001")
    assert (upper(1e-9, 3), lower(1e-9, 3)) == ("0.001", "0.000")
    assert lower(Fraction(199_900, 2000), 2) == "99.95"
    for k in range(256):
        radius = Fraction(k, 255)
        assert in_255ths(radius) == f"{k}/255"
        assert Fraction(float_lower(radius)) <= radius
    assert in_255ths(Fraction("0.5")) == "127.5/255"
    assert in_255ths(Fraction("35.99999") / 255) != "36/255"


def test_control_characters_are_written_out() -> None:
    assert visible("a\x1b[2J\tb\nc\udcff") == "a\\x1b[2J\\tb\\nc\\udcff"
