"""The two streams, how much is said on them, and progress.

Results go to standard output, everything else to standard error, so that output in a pipe is clean.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

UNLIMITED = 10_000

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Verbosity(IntEnum):
    """How much is said beside results and errors."""

    QUIET = -1
    NORMAL = 0
    VERBOSE = 1


class _Settings:
    verbosity = Verbosity.NORMAL


def set_verbosity(verbosity: Verbosity) -> None:
    """Say more or less from now on."""
    _Settings.verbosity = verbosity


def is_quiet() -> bool:
    """Whether only results and errors are to be shown."""
    return _Settings.verbosity == Verbosity.QUIET


def visible(text: str) -> str:
    """With control characters written out: names of files and classes must not steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def cell(text: str, style: str = "") -> Text:
    """Text for a table, taken as it is and not as markup."""
    return Text(visible(text), style=style)


def _print(console: Console, lines: tuple[str, ...], style: str | None = None) -> None:
    for line in lines:
        console.print(visible(line), markup=False, soft_wrap=True, style=style)


def print_line(*lines: str) -> None:
    """Print results as they are on standard output, without markup or wrapping."""
    _print(out, lines)


def print_hint(*lines: str) -> None:
    """Print on standard output what to do next; not when quiet."""
    if not is_quiet():
        _print(out, lines)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on a line of standard output, flushed."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def print_note(*lines: str) -> None:
    """Print remarks on standard error; not when quiet."""
    if not is_quiet():
        _print(err, lines, "dim")


def print_detail(*lines: str) -> None:
    """Print on standard error what only a verbose command tells."""
    if _Settings.verbosity == Verbosity.VERBOSE:
        _print(err, lines, "dim")


def print_asked(*lines: str) -> None:
    """Print on standard error what an option asks for, also when quiet."""
    _print(err, lines)


def print_error(text: str) -> None:
    """Print one red line on standard error."""
    _print(err, (f"Error: {text}",), "red")


def print_table(table: Table) -> None:
    """Print a table; where nobody looks at a screen, its lines are as long as they must be."""
    screen = out if out.is_terminal else Console(width=UNLIMITED, highlight=False)
    screen.print(table)


def plain_table(*columns: str) -> Table:
    """A table without lines; a column whose name starts with ">" is flushed right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column[:1] == ">" else "left")
    return table


def progress_bars() -> Progress:
    """Bars on standard error: what, how many of how many, time left, a note; none when quiet."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        # A bar on the screen must not swallow what goes into a file.
        redirect_stdout=sys.stdout.isatty(),
        transient=True,
        disable=is_quiet() or not err.is_terminal,
    )


@contextmanager
def stages(first: str = "load") -> Iterator[Callable[[str], None]]:
    """A spinner with the name of the running stage; nothing when quiet."""
    if is_quiet():
        yield lambda stage: None
    else:
        with err.status(cell(first)) as status:
            yield lambda stage: status.update(cell(stage))
