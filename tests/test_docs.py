"""Every command in the README and the docs is run here, or is a line of a make target."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

from lipdeploy.cli import app
from lipdeploy.corruptions import CORRUPTIONS
from lipdeploy.report.prediction import FIELDS
from lipdeploy.training.recipe import parse_recipe

Cli = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[1]
TUTORIAL = "docs/tutorial.md"
DOCUMENTS = tuple(
    str(path.relative_to(ROOT))
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("samples/*.md")])
    if path.name != "CHANGELOG.md"
)
LANGUAGES = {"sh", "text", "python", "toml", "{eval-rst}"}
PROGRAMS = ("lipdeploy", "make", "pip", "python", "python3", "torchrun")


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def outside_of_blocks(document: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(document: str) -> list[str]:
    """The lines of the shell blocks, without their comments."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    stripped = (re.sub(r"\s+#.*", "", line).strip() for line in lines)
    return [line for line in stripped if line]


def run_by_make(line: str) -> bool:
    makefile = (ROOT / "Makefile").read_text()
    if line.startswith("make "):
        return re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE) is not None
    recipes = [part for part in makefile.splitlines() if part.startswith("\t")]
    return any(line in re.sub(r"\S+/bin/|\$\(BIN\)/", "", recipe) for recipe in recipes)


def run_by_bash(lines: list[str], folder: Path) -> str:
    """What the lines print."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", "-e", "-u", "-x", "-c", "\n".join(lines)],
        cwd=folder,
        env=os.environ | {"PATH": path, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def run_python(document: str) -> None:
    """The examples of a page, in order, in this folder."""
    for example in blocks(document, "python"):
        exec(compile(example, document, "exec"), {})


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which somebody went through the tutorial, and what it printed."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "samples").symlink_to(ROOT / "samples")
    return folder, run_by_bash(commands(TUTORIAL), folder)


@pytest.fixture
def checkout(
    tutorial: tuple[Path, str], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of it, where the reader of another page stands."""
    folder = tmp_path / "checkout"
    shutil.copytree(tutorial[0], folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_the_tutorial_leads_to_a_certified_engine(tutorial: tuple[Path, str]) -> None:
    folder, output = tutorial
    assert (folder / "runs" / "own" / "model.onnx").is_file()
    assert (folder / "report.html").is_file()
    assert "soundness: passed" in output
    assert int(re.findall(r"clean accuracy +(\d+) of 10", output)[0]) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d != TUTORIAL and commands(d)])
def test_every_shell_command_works(document: str, checkout: Path, run_cli: Cli) -> None:
    """In the folder that the tutorial leaves; what stands there, too, was run there."""
    run_python(document)
    known = commands(TUTORIAL)
    for line in commands(document):
        if line in known or run_by_make(line):
            continue
        program, *arguments = shlex.split(line)
        if program == "lipdeploy":
            status, _, errors = run_cli(*arguments)
            assert status == 0, f"{line}: {errors}"
        else:
            run_by_bash([line], checkout)
    written = re.findall(r"(\S+\.(?:html|png|csv|parquet|onnx))", "\n".join(commands(document)))
    assert [name for name in written if "*" not in name and not Path(name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_stand_only_where_they_are_run(document: str) -> None:
    """That is in blocks of the language sh."""
    text = (ROOT / document).read_text()
    assert set(re.findall(r"^```(\S+)", text, re.MULTILINE)) <= LANGUAGES
    program = rf"(?:{'|'.join(PROGRAMS)}) .*"
    shown = [line for block in blocks(document, "text") for line in block.splitlines()]
    assert [line for line in shown if re.match(program, line)] == []
    assert re.findall(rf"^    {program}", outside_of_blocks(document), re.MULTILINE) == []


@pytest.mark.parametrize("document", ["README.md", TUTORIAL])
def test_python_examples_print_a_class_and_a_radius(
    document: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_python(document)
    label, radius = capsys.readouterr().out.split()
    assert label in {"cat", "animal"}
    assert float(radius) > 0


def test_no_python_example_is_left_out() -> None:
    run = {d for d in DOCUMENTS if commands(d)}
    assert {d for d in DOCUMENTS if blocks(d, "python")} <= run


def test_the_recipe_of_the_docs_is_one() -> None:
    (example,) = blocks("docs/training.md", "toml")
    assert parse_recipe(tomllib.loads(example), "mine", "mine.toml")


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_commands_that_are_mentioned_exist(document: str) -> None:
    found = get_command(app).commands
    known = {name: {o for p in c.params for o in p.opts} for name, c in found.items()}
    everywhere = {option for options in known.values() for option in options}
    text = outside_of_blocks(document)
    code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^    (\S.*)", text, re.MULTILINE)
    code += commands(document)
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    root = {"--help", "--version", "--install-completion"}
    for line in code:
        words = line.split() or [""]
        if words[0] == "make" and len(words) > 1:
            assert words[1] in targets, line
        if words[0] == "lipdeploy" and len(words) > 1:
            assert words[1] in known or words[1] in root, line
            options = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
            assert options <= known.get(words[1], set()), line
        elif words[0].startswith("--"):
            assert words[0] in everywhere | root, line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / document).read_text()):
        assert (folder / target).exists(), target


def test_quoted_measurements_are_those_that_were_made() -> None:
    results = (ROOT / "benchmarks" / "results" / "corruptions-cpu.txt").read_text().splitlines()
    quoted = blocks("docs/evaluate.md", "text")[-1].splitlines()
    assert len(quoted) >= 5
    assert set(quoted) <= set(results)


def test_the_constants_of_corruptions_are_those_that_are_documented() -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d., ]+) \|$", text, re.MULTILINE)
    assert {name: tuple(map(float, numbers.split(","))) for name, numbers in rows} == {
        name: corruption.strengths for name, corruption in CORRUPTIONS.items()
    }


def test_every_field_of_the_output_is_documented() -> None:
    described = (ROOT / "docs" / "commands.md").read_text()
    for field, meaning in FIELDS.items():
        assert f"- `{field}`: {meaning}." in described
