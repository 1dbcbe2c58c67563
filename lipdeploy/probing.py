"""Programs that may hang or crash, each in a process of its own with a time limit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

LIMIT = 60.0
"""Seconds; importing the largest libraries from a cold disk takes a good part of them."""

UNKILLABLE = 1.0
"""Seconds that are waited for a killed process: one that sleeps inside of a driver never ends."""

LONGEST_ERROR = 300

MARK = "answer of the probe: "

_HARNESS = f"""
import json, os, sys
answer = dict()
try:
    exec(sys.argv[1], dict(answer=answer))
except BaseException as error:
    answer["error"] = type(error).__name__ + ": " + str(error)
print({MARK!r} + json.dumps(answer), flush=True)
os._exit(0)  # what libraries do when Python ends is no part of the answer
"""


class ProbeError(Exception):
    """What became of a program, in one line.

    Attributes:
        log: what it wrote on standard error.
    """

    def __init__(self, text: str, log: str = "") -> None:
        super().__init__(" ".join(text.split())[:LONGEST_ERROR])
        self.log = log


def output_of(command: Sequence[str]) -> str:
    """Standard output of a program.

    Raises:
        ProbeError: if it is missing, fails, crashes, or does not end within `LIMIT`.
    """
    status, output, errors = _run(command, os.environ)
    if status:
        raise ProbeError(_ending(status, errors or output), errors)
    return output


def ask(code: str) -> dict[str, Any]:
    """What a piece of Python puts into the dictionary `answer`, in an interpreter of its own.

    It finds the modules that this interpreter finds.

    Raises:
        ProbeError: if it raises, crashes, or does not end within `LIMIT`.
    """
    path = os.pathsep.join(entry or str(os.curdir) for entry in sys.path)
    command = [sys.executable, "-P", "-c", _HARNESS, code]
    status, output, errors = _run(command, os.environ | {"PYTHONPATH": path})
    _, has_answered, text = output.rpartition(MARK)
    if not has_answered:
        raise ProbeError(_ending(status, errors), errors)
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise ProbeError(answer["error"], errors)
    return answer


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a program; raises ProbeError as above."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
    except OSError as error:
        raise ProbeError(f"cannot be started ({error.strerror})") from error
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f"no answer within {LIMIT:g} s") from error
    finally:
        _end(process)
    return process.returncode, output, errors


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill a process that still runs, and let go of it."""
    if process.poll() is None:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(UNKILLABLE)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _ending(status: int, output: str) -> str:
    """How a program ended that gave no answer."""
    if status < 0:
        return f"crashed ({signal.strsignal(-status) or -status})"
    lines = output.strip().splitlines()
    return lines[-1] if lines else f"ended with status {status}"
