"""Command line of the benchmark on a CPU; see the package."""

import argparse
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from inference.cases import Case, Measured, build, measure, model_of
from inference.engines import PLANNED
from inference.networks import ABOUT_WEIGHTS
from inference.plan import CASES, QUICK, WITH_PEERS, predicted_seconds
from inference.quick import summary
from inference.report import print_results, write_picture
from inference.results import Results, describe_machine, notes_of, rows_of, skips_of
from lipdeploy.report.console import print_json

RESULTS = Path(__file__).parents[1] / "results"
MEMORY = 18 << 30
"""Bytes that one case may take."""

CASE_SECONDS = 2400
"""What one case may take, with all that it builds."""


def run_case(case: Case, *, memory: bool) -> tuple[Results, dict[int, Measured]]:
    """Build and measure one case in this process."""
    results, found = Results(describe_machine(), notes=[ABOUT_WEIGHTS]), dict[int, Measured]()
    with model_of(case) as model:
        for batch in case.batches:
            built = build(case, model, batch)
            results.skipped += skips_of(f"{case.label}, batch {batch}", built.skipped)
            results.build_seconds |= built.seconds
            measured = measure(case, built, model, batch)
            # Engines and opponents of one batch size are let go before those of the next are built.
            found[batch] = replace(measured, opponents={})
            results.rows += rows_of(measured, memory=memory)
            results.skipped += skips_of(f"{case.label}, batch {batch}", measured.skipped)
            results.notes += notes_of(measured)
            del built, measured
    return results, found


def run_alone(index: int) -> Results:
    """Measure one of `CASES` in a process of its own, so that its memory is free afterwards."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        command = [sys.executable, "-m", "inference", "--case", str(index), "--out", str(output)]
        try:
            subprocess.run(command, check=True, timeout=CASE_SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            return Results(skipped=[f"{CASES[index].label}: {error}"])
        return Results.read(output)


def run_all() -> Results:
    """Measure every case that can be built in time."""
    results = run_alone(0)
    centre = results.build_seconds.get(PLANNED, 0.0)
    for index, case in enumerate(CASES[1:], start=1):
        predicted = predicted_seconds(case, centre)
        if predicted > case.build_seconds:
            results.skipped.append(
                f"{case.label}: building its engine would take about {predicted:.0f} s, at most "
                f"{case.build_seconds:.0f} s are given"
            )
        else:
            results.add(run_alone(index))
    return results


def options() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the centre alone, JSON at the end")
    parser.add_argument("--peers", action="store_true", help="the centre beside other libraries")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for; print it, and write files where it is the whole benchmark."""
    asked = options()
    if asked.case is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        run_case(CASES[asked.case], memory=True)[0].write(asked.out)
    elif asked.quick:
        results, found = run_case(QUICK, memory=False)
        print_results(results)
        print_json(summary(found))
    elif asked.peers:
        results, _ = run_case(WITH_PEERS, memory=False)
        print_results(results)
        results.write(RESULTS / "peers-cpu.json")
    else:
        results = run_all()
        print_results(results)
        results.write(RESULTS / "inference-cpu.json")
        write_picture(results, RESULTS / "inference-cpu.png")


if __name__ == "__main__":
    main()
