"""Median wall time of `lipdeploy --help` and of a cold `lipdeploy predict` on one image.

python benchmarks/command_times.py path/to/lipdeploy
"""

import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 9
SAMPLES = Path(__file__).parents[1] / "samples"


def seconds(command: list[str]) -> list[float]:
    """Wall times of RUNS runs after one that is not counted."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    """Print a line a command."""
    program = sys.argv[1] if len(sys.argv) > 1 else "lipdeploy"
    image, model = SAMPLES / "cat-0000.jpg", SAMPLES / "model.onnx"
    predict = ["predict", str(image), "--certify", "--model", str(model)]
    print(f"{platform.machine()}, Python {platform.python_version()}, {RUNS} runs each")
    for arguments in (["--help"], predict):
        times = seconds([program, *arguments])
        name = " ".join(["lipdeploy", *arguments[:1]])
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"{name:20s} median {statistics.median(times):.2f} s ({spread})")


if __name__ == "__main__":
    main()
