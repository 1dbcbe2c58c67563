"""`make soundness`: attacks, checks and mutations; the last line is one JSON object.

python -m soundness [--quick]
"""

import argparse
import json
import sys
import time

import numpy as np

from lipdeploy.errors import LipdeployError
from soundness import exhaustive, mutations, tightness
from soundness.attacks import attack_case
from soundness.checks import CHECKS, Check
from soundness.networks import cases

ATTACKS, QUICK_ATTACKS = 112_000, 6_000
HEADS, QUICK_HEADS = 8, 3
IMAGES, QUICK_IMAGES = 60, 10


def first_failure(checks: tuple[Check, ...]) -> tuple[str, str] | None:
    """Name of the first check that fails and why, or None."""
    for check in checks:
        try:
            check()
        # Anything else would be an error of the suite, and no fault that was found.
        except (AssertionError, LipdeployError) as error:
            return check.__name__, f"{type(error).__name__}: {error}".splitlines()[0][:90]
    return None


def run_mutations() -> int:
    """Put every fault in, say which check finds it; the number found."""
    killed = 0
    for mutation in mutations.MUTATIONS:
        with mutation.applied():
            failure = first_failure(CHECKS)
        killed += failure is not None
        found = f"killed by {failure[0]} ({failure[1]})" if failure else "SURVIVED"
        print(f"mutation {mutation.name!r}: {found}", flush=True)
    return killed


def run_attacks(total: int) -> tuple[int, int, bool]:
    """Attack all networks; attacks, violations, and whether exact bounds are sharp."""
    everything = cases()
    attacks = violations = flips = tried = 0
    for index, case in enumerate(everything):
        done, repeat = 0, 0
        while done < total / len(everything) and repeat < 4:
            tally = attack_case(
                case, max(8, int(total / len(everything) * 1.1) - done), 100 * index + repeat
            )
            violations += tally.violations + tally.graph_above_host
            flips, tried = flips + tally.flips_outside, tried + tally.tried_outside
            done, repeat = done + tally.attacks, repeat + 1
        attacks += done
        median = float(np.median(tally.radii)) if tally.radii else 0.0
        print(
            f"attacked {case.name}: {done} certificates, {violations} violations so far, median "
            f"radius {median:.3g}/255",
            flush=True,
        )
    is_sharp = flips > tried / 2
    print(f"sharpness: the class flips at 1.01 r in {flips} of {tried} attacks on exact bounds")
    return attacks, violations, is_sharp


def main() -> int:
    """Run everything; exit status 1 if anything is violated or survives."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer attacks")
    quick = parser.parse_args().quick
    start = time.perf_counter()
    failure = first_failure(CHECKS)
    print(f"{len(CHECKS)} checks: {'all hold' if failure is None else failure}", flush=True)
    print(tightness.report(QUICK_HEADS if quick else HEADS), flush=True)
    # A check that fails anyway would "kill" every mutation.
    killed = run_mutations() if failure is None else 0
    found = exhaustive.exhaust(QUICK_IMAGES if quick else IMAGES)
    print(f"exhaustive: {found}", flush=True)
    attacks, violations, is_sharp = run_attacks(QUICK_ATTACKS if quick else ATTACKS)
    violations += found.violations
    print(f"{time.perf_counter() - start:.0f} s")
    total = len(mutations.MUTATIONS)
    summary = {"attacks": attacks, "violations": violations}
    print(json.dumps({**summary, "mutations": total, "mutations_killed": killed}))
    return int(failure is not None or violations > 0 or killed < total or not is_sharp)


if __name__ == "__main__":
    sys.exit(main())
