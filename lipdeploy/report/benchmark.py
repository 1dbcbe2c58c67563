"""Engines side by side: tables, and one JSON object a line."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lipdeploy.decimals import float_lower, in_255ths, lower
from lipdeploy.report.console import (
    cell,
    plain_table,
    print_error,
    print_json,
    print_line,
    print_note,
    print_table,
)

if TYPE_CHECKING:
    from lipdeploy.evaluation import Evaluation
    from lipdeploy.measuring import Answered, Timed
    from lipdeploy.predictor import Predictor


@dataclass(frozen=True)
class Measured:
    """All that is known of one engine.

    Attributes:
        predictor: what was measured.
        times: at each batch size.
        answers: on the test set; None without one.
    """

    predictor: "Predictor"
    times: "Sequence[Timed]"
    answers: "Answered | None" = None


def write_rows(measured: Measured, radii: Sequence[Fraction]) -> None:
    """One JSON object a batch size; times in seconds, radii in [0, 1] pixels."""
    predictor = measured.predictor
    engine = {
        "file": predictor.model,
        "format": predictor.format,
        "runtime": predictor.runtime.description,
        "bytes": predictor.size,
        "sha256": predictor.sha256,
        "guarantee": predictor.guarantee,
        "rounding": predictor.rounding,
    }
    answers = {} if measured.answers is None else _answers(measured.answers, radii)
    for timed in measured.times:
        print_json(engine | _times(timed) | answers)


def _times(timed: "Timed") -> dict[str, Any]:
    return {
        "batch": timed.batch,
        "engine_seconds": asdict(timed.engine),
        "certified_seconds": asdict(timed.certified),
        "images_per_second": timed.images_per_second,
        "certified_per_second": timed.certified_per_second,
    }


def _answers(answers: "Answered", radii: Sequence[Fraction]) -> dict[str, Any]:
    evaluation, difference = answers.evaluation, answers.logit_difference
    return {
        "data": answers.data,
        "images": evaluation.images,
        "unreadable": evaluation.unreadable,
        "correct": evaluation.correct,
        "clean_accuracy": evaluation.clean_accuracy,
        "certified": [
            {
                "radius": float_lower(radius),
                "exactly": in_255ths(radius),
                "images": evaluation.certified(radius),
                "accuracy": evaluation.certified_accuracy(radius),
            }
            for radius in radii
        ],
        # JSON has no infinity.
        "logit_difference": difference if difference is None or math.isfinite(difference) else None,
    }


def write_times(engines: Sequence[Measured]) -> None:
    """A line an engine and batch size, times in milliseconds."""
    table = plain_table(
        "file",
        "format",
        "runtime",
        ">MB",
        ">batch",
        ">p50 ms",
        ">p25 to p75",
        ">p95",
        ">images/s",
        ">certified p50 ms",
        ">p95",
        ">images/s",
    )
    for engine in engines:
        description = engine.predictor.runtime.description
        runtime, remark, _ = description.partition(" (")
        if remark:
            print_note(f"{engine.predictor.model}: {description}")
        for timed in engine.times:
            run, certified = timed.engine, timed.certified
            table.add_row(
                cell(engine.predictor.model),
                engine.predictor.format,
                cell(runtime),
                f"{engine.predictor.size / 1e6:.2f}",
                str(timed.batch),
                _ms(run.p50),
                f"{_ms(run.p25)} to {_ms(run.p75)}",
                _ms(run.p95),
                f"{timed.images_per_second:.0f}",
                _ms(certified.p50),
                _ms(certified.p95),
                f"{timed.certified_per_second:.0f}",
            )
    print_table(table)
    calls = [min(t.engine.calls, t.certified.calls) for engine in engines for t in engine.times]
    print_note(
        f"quantiles of at least {min(calls)} calls each, by turns, on random images in memory; "
        "certified: with certificates"
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def write_answers(engines: Sequence[Measured], radii: Sequence[Fraction]) -> None:
    """A line an engine: accuracy, and how far its logits are from those of the first."""
    names = [f">certified at {in_255ths(radius)}" for radius in radii]
    table = plain_table("file", ">accuracy", *names, "guarantee", ">largest difference of logits")
    compared = [(engine.predictor, engine.answers) for engine in engines if engine.answers]
    for predictor, answers in compared:
        evaluation = answers.evaluation
        table.add_row(
            cell(predictor.model),
            _share(evaluation.correct, evaluation),
            *(_share(evaluation.certified(radius), evaluation) for radius in radii),
            predictor.guarantee,
            _difference(answers.logit_difference),
        )
    if compared:
        _, first = compared[0]
        print_line()
        print_table(table)
        print_note(
            f"answers to {first.evaluation.images} images of {first.data}; logits compared with "
            "those of the first file"
        )


def tell_unanswered(engines: Sequence[Measured]) -> int:
    """Say of each engine how many images have no answer; gives their number."""
    total = 0
    for engine in engines:
        count = engine.answers.evaluation.unreadable if engine.answers else 0
        total += count
        if count:
            name = engine.predictor.model
            print_error(f"{name}: no answer to {count} images; 'lipdeploy evaluate' names them")
    return total


def _share(count: int, evaluation: "Evaluation") -> str:
    return f"{lower(Fraction(100 * count, evaluation.images), 2)} %"


def _difference(difference: float | None) -> str:
    if difference is None:
        return ""
    return f"{difference:.3g}" if math.isfinite(difference) else "not finite"
