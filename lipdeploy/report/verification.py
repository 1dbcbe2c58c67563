"""The lines and the two verdicts of `lipdeploy verify`."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lipdeploy.report.console import print_line, print_note, stages

if TYPE_CHECKING:
    from lipdeploy.verification import Check

MARKS = {True: "ok", False: "FAILED", None: "skipped"}
MEND = "make it again with 'lipdeploy export', or take it anew from whoever made it"
VERDICTS = ("integrity", "soundness")


class Verdicts:
    """Collects checks.

    Args:
        path: of the file that they are about.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.checks: list[Check] = []

    def add(self, check: "Check") -> None:
        """One more line."""
        self.checks.append(check)

    def of(self, verdict: str) -> bool | None:
        """Whether the checks of a verdict passed; None where there were none."""
        own = [check.passed for check in self.checks if check.verdict == verdict]
        return False not in own if own else None

    @property
    def passed(self) -> bool:
        """Whether both verdicts are good."""
        return all(self.of(verdict) is True for verdict in VERDICTS)

    def summary(self) -> dict[str, Any]:
        """Everything in plain values."""
        verdicts = {verdict: self.of(verdict) for verdict in VERDICTS}
        return {"path": self.path, **verdicts, "checks": [asdict(check) for check in self.checks]}


def watched(checks: Iterator["Check"]) -> Iterator["Check"]:
    """Checks as they come; while one is under way a spinner says how far the verification is."""
    done, last = 0, ""
    while True:
        with stages(f"verify: {done} checks done{last}"):
            check = next(checks, None)
        if check is None:
            return
        done, last = done + 1, f", the last: {check.name}"
        yield check


def write_check(check: "Check") -> None:
    """One line."""
    print_line(f"{MARKS[check.passed]:8s}{check.verdict:10s} {check.name}: {check.detail}")


def write_verdicts(verdicts: Verdicts) -> None:
    """The two lines that count, and what to do with a file that failed."""
    failed = {
        verdict: [c.name for c in verdicts.checks if c.verdict == verdict and c.passed is False]
        for verdict in VERDICTS
    }
    for verdict, names in failed.items():
        if names:
            print_line(f"{verdict}: FAILED ({'; '.join(names)})")
            continue
        skipped = [c.name for c in verdicts.checks if c.verdict == verdict and c.passed is None]
        result = "passed" if verdicts.of(verdict) else "could not be checked"
        left_out = f" (not checked here: {'; '.join(skipped)})" if skipped else ""
        print_line(f"{verdict}: {result}{left_out}")
    if any(failed.values()):
        print_note(f"do not use {verdicts.path}: what it certifies is not proven; {MEND}")
