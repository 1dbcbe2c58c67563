"""Every command in the README and the docs is run here, or is a line of a make target."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import own_test_set
from shard_files import samples_of, table_of, tar_of, write_parquet
from typer.main import get_command

from lipdeploy.cli import app
from lipdeploy.corruptions import CORRUPTIONS
from lipdeploy.report.prediction import FIELDS

Cli = Callable[..., tuple[int, str, str]]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "samples/README.md",
    "docs/commands.md",
    "docs/evaluate.md",
    "docs/attacks.md",
    "docs/training.md",
    "docs/training-scale.md",
)


def blocks(source: Path, document: str, language: str) -> list[str]:
    text = (source / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def lines(block: str) -> list[str]:
    stripped = (re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines())
    return [line for line in stripped if line]


def run_by_make(source: Path, line: str) -> bool:
    makefile = (source / "Makefile").read_text()
    if line.startswith("make "):
        return re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE) is not None
    recipes = [part for part in makefile.splitlines() if part.startswith("\t")]
    return any(line in re.sub(r"\S+/bin/|\$\(BIN\)/", "", recipe) for recipe in recipes)


@pytest.fixture
def checkout(source: Path, tmp_path: Path) -> Path:
    """What a reader of the README stands in."""
    (tmp_path / "samples").symlink_to(source / "samples")
    return tmp_path


def test_only_the_readme_has_shell_commands(source: Path) -> None:
    assert [d for d in DOCUMENTS if blocks(source, d, "sh")] == ["README.md"]


@pytest.mark.slow
def test_every_shell_command_works(source: Path, checkout: Path) -> None:
    script = [line for block in blocks(source, "README.md", "sh") for line in lines(block)]
    script = [line for line in script if not run_by_make(source, line)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", "-e", "-u", "-x", "-c", "\n".join(script)],
        cwd=checkout,
        env=os.environ | {"PATH": path, "XDG_CACHE_HOME": str(checkout / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert len(script) >= 10
    assert (checkout / "runs" / "own" / "model.onnx").is_file()
    assert (checkout / "curve.png").is_file()
    assert (checkout / "report.html").is_file()
    assert int(re.findall(r"clean accuracy +(\d+) of 10", finished.stdout)[0]) >= 7


def test_every_python_example_works(
    source: Path,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(checkout)
    (example,) = blocks(source, "README.md", "python")
    exec(compile(example, "README.md", "exec"), {})
    label, radius = capsys.readouterr().out.split()
    assert label == "cat"
    assert float(radius) > 0


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_commands_that_are_mentioned_exist(source: Path, document: str) -> None:
    commands = get_command(app).commands
    known = {name: {o for p in c.params for o in p.opts} for name, c in commands.items()}
    everywhere = {option for options in known.values() for option in options}
    text = (source / document).read_text()
    code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^    (\S.*)", text, re.MULTILINE)
    code += [line for block in blocks(source, document, "sh") for line in lines(block)]
    targets = set(re.findall(r"^([a-z0-9-]+):", (source / "Makefile").read_text(), re.MULTILINE))
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
def test_links_lead_somewhere(source: Path, document: str) -> None:
    folder = (source / document).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (source / document).read_text()):
        assert (folder / target).exists(), target


def test_evaluating_works_as_described(
    source: Path, checkout: Path, small_engine: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted((own_test_set(checkout / "own", source / "samples") / "test").rglob("*.jpg"))
    rows = [f"{path.relative_to(checkout)},{path.parent.name}" for path in images]
    (checkout / "list.csv").write_text("\n".join(["path,label", *rows]))
    data, names = [path.read_bytes() for path in images], [path.parent.name for path in images]
    write_parquet(checkout / "test.parquet", table_of(data, names))
    for number in range(2):
        part = tar_of(samples_of(data[number::2], names[number::2]))
        (checkout / f"test-00{number}.tar").write_bytes(part)
    shutil.copy(small_engine, checkout / "other.onnx")
    monkeypatch.chdir(checkout)
    text = (source / "docs" / "evaluate.md").read_text()
    commands = re.findall(r"^    lipdeploy (.*)", text, re.MULTILINE)
    for command in commands:
        status, output, errors = run_cli(*shlex.split(command))
        assert status == 0, errors
        assert "certified at" in output
    assert len(commands) == 8
    assert (checkout / "report.html").is_file()
    assert (checkout / "images.parquet").is_file()


def test_quoted_measurements_are_those_that_were_made(source: Path) -> None:
    text = (source / "docs" / "evaluate.md").read_text()
    results = (source / "benchmarks" / "results" / "corruptions-cpu.txt").read_text().splitlines()
    quoted = re.findall(r"^    (\S.* %.*)", text, re.MULTILINE)
    assert len(quoted) >= 5
    assert set(quoted) <= set(results)


def test_the_constants_of_corruptions_are_those_that_are_documented(source: Path) -> None:
    text = (source / "docs" / "evaluate.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d., ]+) \|$", text, re.MULTILINE)
    assert {name: tuple(map(float, numbers.split(","))) for name, numbers in rows} == {
        name: corruption.strengths for name, corruption in CORRUPTIONS.items()
    }


def test_long_commands_in_the_samples_are_make_targets(source: Path) -> None:
    text = (source / "samples" / "README.md").read_text()
    (command,) = re.findall(r"^    (lipdeploy .*)", text, re.MULTILINE)
    assert run_by_make(source, command)


def test_every_field_of_the_output_is_documented(source: Path) -> None:
    described = (source / "docs" / "commands.md").read_text()
    for field, meaning in FIELDS.items():
        assert f"- `{field}`: {meaning}." in described
