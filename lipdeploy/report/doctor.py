"""The lines of `lipdeploy doctor`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lipdeploy.report.console import print_line, print_note

if TYPE_CHECKING:
    from lipdeploy.installed import Item


def problems(items: Sequence["Item"]) -> list[str]:
    """Names of what is broken."""
    return [item.name for item in items if item.state == "problem"]


def doctor_summary(items: Sequence["Item"]) -> dict[str, Any]:
    """Everything in plain values."""
    return {"problems": problems(items), "items": [asdict(item) for item in items]}


def write_item(item: "Item") -> None:
    """One line."""
    advice = f" -> {item.advice}" if item.advice else ""
    print_line(f"{item.state:9s}{item.name}: {item.found}{advice}")


def write_verdict(items: Sequence["Item"]) -> None:
    """What it comes to."""
    names = ", ".join(problems(items))
    print_note(f"to be mended: {names}" if names else "nothing is broken")
