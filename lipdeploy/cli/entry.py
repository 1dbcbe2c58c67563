"""The application, and what becomes of errors: one red line and an exit status."""

import os
import sys
from typing import Annotated, Any

import typer

import lipdeploy
from lipdeploy.cli import options
from lipdeploy.cli.benchmark import benchmark
from lipdeploy.cli.check_pair import check_pair
from lipdeploy.cli.doctor import doctor
from lipdeploy.cli.evaluate import evaluate
from lipdeploy.cli.export import export
from lipdeploy.cli.inspect import inspect
from lipdeploy.cli.predict import predict
from lipdeploy.cli.train import train
from lipdeploy.cli.training_task import INTERRUPTED
from lipdeploy.cli.verify import verify
from lipdeploy.errors import LipdeployError, ToldElsewhereError
from lipdeploy.report.console import Verbosity, print_error, print_line, set_verbosity

# Typer carries its own copy of click or uses an installed one; either way this is the base of what
# is raised for an unknown command, option or value.
_WrongUsage: type[Exception] = typer.BadParameter.__bases__[0]

EXTRAS = {
    "torch": "train",
    "matplotlib": "plot",
    "tensorboard": "tensorboard",
    "jinja2": "report",
    "pyarrow": "parquet",
}
"""Packages that not every command needs, and the extra that brings each."""

STANDARD_OUTPUT = 1  # file descriptor

app = typer.Typer(
    help=lipdeploy.__doc__,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    train,
    export,
    predict,
    evaluate,
    benchmark,
    check_pair,
    inspect,
    verify,
    doctor,
):
    app.command()(command)


def _show_version(value: bool) -> None:
    if value:
        from lipdeploy.versions import versions

        for name, version in versions().items():
            print_line(f"{name} {version}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the versions that matter in a bug report.",
        ),
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """1-Lipschitz image classifiers whose every answer carries a guaranteed l2 radius."""


def main() -> None:
    """Run the command line; an expected error is one line and an exit status."""
    set_verbosity(Verbosity.NORMAL)
    for stream in (sys.stdout, sys.stderr):
        # A file name that is no text must not end the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] or ["--help"]
    try:
        status = app(arguments, "lipdeploy", standalone_mode=False)
        sys.stdout.flush()
    # The boundary of the program: whatever happens inside, a person gets one line.
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            raise
        status = _explain(error)
    sys.exit(status or 0)


def _explain(error: BaseException) -> int:
    """Print one line about an error, and give the exit status that it means."""
    if isinstance(error, OSError) and error.filename is None:
        # The output itself is full or closed: nothing more may be written to it, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
    if isinstance(error, BrokenPipeError):
        return 1
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        print_error("interrupted")
        return INTERRUPTED
    if not isinstance(error, ToldElsewhereError):
        print_error(_message(error))
    if isinstance(error, LipdeployError):
        return error.exit_status
    return 2 if isinstance(error, _WrongUsage) else 1


def _message(error: BaseException) -> str:
    if isinstance(error, LipdeployError):
        return str(error)
    if isinstance(error, _WrongUsage):
        return _usage_message(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {error.strerror or error}"
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        extra = EXTRAS[error.name]
        return f"this command needs {error.name}; pip install 'lipdeploy[{extra}]'"
    if isinstance(error, MemoryError):
        return "not enough memory; try a smaller --batch, --width or --image-size"
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"unexpected {what}; please report it, with what --debug and --version show"


def _usage_message(error: Any) -> str:  # noqa: ANN401
    """What Typer says of a wrong call, in one line, and the command that explains the right one."""
    text = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command_path if error.ctx else "lipdeploy"
    return f"{text}; see '{command} --help'"
