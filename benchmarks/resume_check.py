"""An evaluation that is killed in the middle and resumed, beside an undisturbed one.

    python benchmarks/resume_check.py ENGINE FOLDER [--part train]

Prints what both found, their memory and their time, and exits with 1 where the numbers differ.
The last line is one JSON object. The training part serves as a large number of images only: what
a model gets right of the images that it was trained on says nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipdeploy.report.console import print_json

OF_THE_RUN = ("seconds", "engine_seconds", "certify_seconds", "images_per_second", "resumed")
"""What an evaluation says of itself, and not of the images."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: of the process, negative for a signal.
        peak_mb: largest resident memory.
        result: the JSON object that it printed, if any.
    """

    status: int
    peak_mb: float
    result: dict[str, Any] | None


def evaluate(arguments: list[str], journal: Path, kill_at: int | None = None) -> Ended:
    """Run `lipdeploy evaluate --resume`, and kill it once it has kept `kill_at` images."""
    command = [sys.executable, "-m", "lipdeploy", "evaluate", *arguments]
    command += ["--resume", str(journal), "--json", "--quiet"]
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(command, stdout=printed)
        while kill_at is not None and process.poll() is None and kept(journal) < kill_at:
            time.sleep(0.2)
        if kill_at is not None:
            process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        text = printed.read()
    return Ended(process.returncode, usage.ru_maxrss / 1024, json.loads(text) if text else None)


def kept(journal: Path) -> int:
    """Images whose results are on disk: all lines but the first."""
    files = list(journal.glob("*.jsonl"))
    return sum(path.read_bytes().count(b"\n") - 1 for path in files)


def of_the_images(result: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on whether the run was killed."""
    return {key: value for key, value in result.items() if key not in OF_THE_RUN}


def main() -> None:
    """Evaluate twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="train", help="folder of FOLDER that is evaluated")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / asked.folder.resolve().name
        folder.mkdir()
        (folder / "test").symlink_to(asked.folder.resolve() / asked.part)
        arguments = [str(asked.engine), str(folder)]
        whole = evaluate(arguments, Path(temporary) / "whole")
        if whole.result is None:
            raise SystemExit(f"lipdeploy evaluate ended with status {whole.status}")
        images = whole.result["images"]
        journal = Path(temporary) / "killed"
        killed = evaluate(arguments, journal, images // 2)
        resumed = evaluate(arguments, journal)
    if resumed.result is None:
        raise SystemExit(f"the resumed evaluation ended with status {resumed.status}")
    same = of_the_images(resumed.result) == of_the_images(whole.result)
    found = {
        "images": images,
        "status_of_killed": killed.status,
        "kept_at_the_kill": resumed.result["resumed"],
        "same_numbers": same,
        "peak_mb": {"undisturbed": whole.peak_mb, "killed": killed.peak_mb}
        | {"resumed": resumed.peak_mb},
        "seconds": {"undisturbed": whole.result["seconds"], "resumed": resumed.result["seconds"]},
    }
    print_json(found)
    raise SystemExit(0 if same and killed.status == -signal.SIGKILL else 1)


if __name__ == "__main__":
    main()
