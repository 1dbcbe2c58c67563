"""Values out of a short list, and what to say when another one is given."""

import difflib
from collections.abc import Iterable

from lipdeploy.errors import UsageError


def suggestion(value: str, choices: Iterable[str]) -> str:
    """The nearest choice as a question, beginning with a semicolon; empty where none is near."""
    near = difflib.get_close_matches(value, list(choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` is one of `choices`; `name` is the option, as in "--head"."""
    if value not in choices:
        expected = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
        raise UsageError(f"{name} {value}: expected {expected}{suggestion(value, choices)}")
