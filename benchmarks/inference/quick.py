"""The centre case in a few minutes, and its numbers as one JSON object."""

from collections.abc import Mapping

from inference.cases import Measured
from inference.engines import ACCUMULATIONS, PLANNED, WITH
from inference.networks import multiplications
from inference.opponents import SERIES_6, SERIES_15
from inference.plain import PLAIN, STRIDED

BATCH = 64


def speedups(measured: Mapping[int, Measured], engine: str) -> dict[str, float | None]:
    """How many times as long as an engine with certificates the series take, by batch."""
    certified = engine + WITH
    found = {f"speedup_batch{n}": _over(one, SERIES_15, certified) for n, one in measured.items()}
    return found | {"speedup6_batch64": _over(measured[BATCH], SERIES_6, certified)}


def _over(measured: Measured, slow: str, fast: str) -> float | None:
    """Median over the rounds, with three digits; None where one was too slow to be timed."""
    timings = measured.timings
    if slow not in timings or fast not in timings:
        return None
    return float(f"{timings[slow].over(timings[fast]):.3g}")


def summary(measured: Mapping[int, Measured]) -> dict[str, object]:
    """The numbers of the engine with `--accumulation same-order`, and of each that was timed.

    Speedups count certificates with the engine: its output `radius`. `max_logit_difference` is
    relative to the largest logit; `certificate_share` is what certificates add to the time of
    inference; `matmul_fraction_batch64` is without them; `vs_...` is a plain CNN's time over the
    engine's with certificates, so below 1 where a guarantee costs time.
    """
    at_64 = measured[BATCH]
    share = at_64.certificate_share
    work = BATCH * multiplications(at_64.case.architecture)
    rate = work / at_64.timings[PLANNED].median / at_64.machine.multiplications
    each = {
        options.accumulation: speedups(measured, name)
        for name, options in ACCUMULATIONS.items()
        if name in at_64.timings
    }
    return {
        **speedups(measured, PLANNED),
        "max_logit_difference": max(one.differences[PLANNED] for one in measured.values()),
        "certificate_share": None if share is None else round(share, 3),
        "matmul_fraction_batch64": float(f"{rate:.3g}"),
        "vs_plain_cnn_batch64": _over(at_64, PLAIN, PLANNED + WITH),
        "vs_strided_cnn_batch64": _over(at_64, STRIDED, PLANNED + WITH),
        "accumulations": each,
    }
