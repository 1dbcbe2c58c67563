"""Writes the reference of all commands and options to standard output: `make docs`."""

from typer.core import TyperArgument, TyperOption
from typer.main import get_command

from lipdeploy.cli import app
from lipdeploy.report.prediction import FIELDS

HEAD = """# Commands

Made by `make docs` from the commands' own help. Every command takes `--quiet` (`-q`: results and
errors only), `--verbose` (`-v`), `--debug` (the traceback of an error) and `--help` (`-h`). Results
go to standard output, everything else to standard error; `NO_COLOR` is respected.
`lipdeploy --version` shows the versions that matter in a bug report;
`lipdeploy --install-completion` teaches your shell the commands, their options and values.

Exit status: 0 fine, 1 something failed, 2 wrong usage, 3 an image is below `--min-radius` or, of
`check-pair`, not covered, 130 stopped by Ctrl-C."""

OUTPUT = """
`--json` prints one object an image, `--csv` one line with the same names as columns, where lists
are JSON. Without certificates their fields, `radius` to `space`, are null.
"""

EVERYWHERE = {"quiet", "verbose", "debug"}


def plain(text: str | None) -> str:
    """Text in which <names> are no HTML."""
    return (text or "").replace("<", r"\<")


def line(parameter: TyperArgument | TyperOption) -> str:
    """One argument or option."""
    if isinstance(parameter, TyperArgument):
        return f"- `{str(parameter.name).upper()}`: {plain(parameter.help)}"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    no_default = parameter.default is None or parameter.default is False
    default = "" if no_default else f" Default: {parameter.default}."
    return f"- {names}: {plain(parameter.help)}{default}"


def main() -> None:
    """Print a section for each command."""
    print(HEAD)
    for name, command in get_command(app).commands.items():
        text, example = command.help.split("Example: ")
        print(f"\n## `lipdeploy {name}`\n\n{plain(' '.join(text.split()))}\n")
        print(f"Example: `{example.strip()}`\n")
        for parameter in command.params:
            if parameter.name not in EVERYWHERE:
                print(line(parameter))
        if name == "predict":
            print(OUTPUT)
            print("\n".join(f"- `{field}`: {meaning}." for field, meaning in FIELDS.items()))


if __name__ == "__main__":
    main()
