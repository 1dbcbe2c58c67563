"""Work ahead of a consumer: order, bounds, and threads that end."""

import gc
import itertools
import json
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from lipdeploy import Predictor, images
from lipdeploy.errors import ImageError
from lipdeploy.pipeline import Pipeline
from lipdeploy.prediction import Failure, Prediction
from lipdeploy.predictor import DECODERS

Cli = Callable[..., tuple[int, str, str]]
PATIENCE = 20


def wait_until(condition: Callable[[], object]) -> None:
    """Fail where a condition does not become true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def model(source: Path) -> Path:
    return source / "samples" / "model.onnx"


class Counted:
    """Gives one thing for ever, or until `stop`, and counts."""

    def __init__(self, thing: object = None, stop: int | None = None) -> None:
        self.thing, self.stop, self.given = thing, stop, 0

    def __iter__(self) -> Iterator[object]:
        while self.given != self.stop:
            self.given += 1
            yield self.thing


def test_results_keep_the_order_of_the_items_whatever_takes_longest() -> None:
    def slow_if_even(item: int) -> int:
        time.sleep(0.002 * (item % 2 == 0))
        return -item

    with Pipeline() as pipeline:
        results = pipeline.map(slow_if_even, range(100), ahead=5, threads=4)
        assert list(results) == [-item for item in range(100)]


def test_stages_work_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=PATIENCE)

    def meet(item: int) -> int:
        meeting.wait()
        return item

    with Pipeline() as pipeline:
        # Two threads of the first stage and the one of the second must be there together.
        first = pipeline.map(meet, [0, 1, 2, 3], ahead=4, threads=2)
        second = pipeline.map(meet, itertools.chain([0], first), ahead=1)
        assert next(second) == 0
        meeting.abort()


@pytest.mark.parametrize("ahead", [1, 4])
def test_items_are_never_read_further_ahead_than_the_bound(ahead: int) -> None:
    items = Counted()
    with Pipeline() as pipeline:
        results = pipeline.map(id, items, ahead=ahead, threads=3)
        for asked in range(20):
            wait_until(lambda n=asked: items.given == n + ahead)
            next(results)
        time.sleep(0.05)
        assert items.given == 20 + ahead


def test_an_exception_comes_in_its_place() -> None:
    with Pipeline() as pipeline:
        results = pipeline.map((6).__floordiv__, [1, 2, 0, 3], ahead=4, threads=2)
        assert [next(results), next(results)] == [6, 3]
        with pytest.raises(ZeroDivisionError):
            next(results)

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the source is gone")

    with Pipeline() as pipeline:
        results = pipeline.map(abs, pipeline.map(abs, broken(), ahead=4), ahead=1)
        assert next(results) == 1
        with pytest.raises(OSError, match="the source is gone"):
            next(results)


def test_results_equal_those_of_batches_one_by_one(model: Path, sample_images: list[Path]) -> None:
    with Predictor(model, batch_size=6) as predictor:
        together = list(predictor(sample_images))
        alone = [
            result
            for start in range(0, len(sample_images), 6)
            for result in predictor(sample_images[start : start + 6])
        ]
    assert len(together) == 20
    assert together == alone


def test_bad_images_stay_where_they_are(model: Path, sample_images: list[Path]) -> None:
    sources: list[Path | bytes] = list(sample_images)
    bad = [0, 4, 5, 6, 7, 13, 19]  # one whole batch of four among them
    for index in bad:
        sources[index] = b"no image"
    with Predictor(model, batch_size=4) as predictor:
        results = list(predictor.attempt(sources))
    assert [i for i, result in enumerate(results) if isinstance(result, Failure)] == bad
    for index, result in enumerate(results):
        assert result.path == (f"#{index}" if index in bad else str(sources[index]))


@pytest.mark.parametrize("batch", [1, 4])
def test_an_infinite_source_is_read_two_batches_ahead(
    model: Path, sample_images: list[Path], batch: int
) -> None:
    sources = Counted(sample_images[0])
    bound = max(batch, DECODERS) + 2 * batch
    with Predictor(model, batch_size=batch) as predictor:
        results = predictor(sources)
        for count in range(1, 30):
            assert isinstance(next(results), Prediction)
            assert sources.given <= count + bound
        time.sleep(0.2)
        assert sources.given <= count + bound
        results.close()
        given = sources.given
        time.sleep(0.05)
        assert sources.given == given


def test_a_source_that_waits_holds_back_no_result(model: Path, sample_images: list[Path]) -> None:
    answered = threading.Event()

    def sources() -> Iterator[Path]:
        yield sample_images[0]
        assert answered.wait(PATIENCE)
        yield sample_images[1]

    with Predictor(model, batch_size=1) as predictor:
        results = predictor(sources())
        assert next(results).path == str(sample_images[0])
        answered.set()
        assert next(results).path == str(sample_images[1])
        assert not list(results)


def test_a_stream_that_is_closed_does_not_wait_for_its_source(
    model: Path, sample_images: list[Path]
) -> None:
    goes_on = threading.Event()

    def sources() -> Iterator[Path]:
        yield sample_images[0]
        goes_on.wait(PATIENCE)

    with Predictor(model, batch_size=1) as predictor:
        results = predictor(sources())
        next(results)
        start = time.monotonic()
        results.close()
        assert time.monotonic() - start < PATIENCE / 2
    goes_on.set()


def test_a_stream_that_nobody_keeps_ends_its_threads(
    model: Path, sample_images: list[Path]
) -> None:
    before = threading.active_count()
    with Predictor(model, batch_size=1) as predictor:
        assert next(predictor(Counted(sample_images[0])))
        gc.collect()
        assert threading.active_count() == before
        with pytest.raises(ImageError, match="#0"):
            next(predictor(Counted(b"no image")))
        gc.collect()
        wait_until(lambda: threading.active_count() == before)


def test_a_program_ends_with_a_stream_half_read(model: Path, sample_images: list[Path]) -> None:
    code = (
        "import itertools, lipdeploy, sys; "
        "predictor = lipdeploy.Predictor(sys.argv[1], batch_size=1); "
        "results = predictor(itertools.repeat(sys.argv[2])); print(next(results).label)"
    )
    arguments = [sys.executable, "-c", code, str(model), str(sample_images[0])]
    finished = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert (finished.stdout, finished.stderr) == ("airplane\n", "")


def test_one_opened_image_can_be_given_many_times(model: Path, sample_images: list[Path]) -> None:
    with Predictor(model, batch_size=8) as predictor:
        results = list(predictor([Image.open(sample_images[0])] * 64))
    assert len({result.logits for result in results}) == 1


def test_threads_that_decode_leave_the_warnings_of_others_alone(sample_images: list[Path]) -> None:
    filters = list(warnings.filters)
    with Pipeline() as pipeline:
        list(pipeline.map(images.decode, sample_images * 20, ahead=8, threads=4))
    assert warnings.filters == filters
    with images.QUIET_PILLOW, images.QUIET_PILLOW, pytest.warns(UserWarning, match="of others"):
        warnings.warn("of others", stacklevel=1)
    assert warnings.filters == filters


def test_the_profile_names_every_stage_and_leaves_the_output_alone(
    run_cli: Cli, source: Path, model: Path
) -> None:
    arguments = ["predict", source / "samples", "--certify", "--json", "--model", model]
    _, plain, nothing = run_cli(*arguments)
    status, output, errors = run_cli(*arguments, "--profile", "--quiet")
    assert (status, output, nothing) == (0, plain, "")
    assert len([json.loads(line) for line in output.splitlines()]) == 20
    head, *stages = errors.splitlines()
    assert head.startswith("profile: 20 images in ")
    assert "images a second" in head
    assert [line.split()[0] for line in stages] == ["decode", "engine", "certificate", "output"]
    total = float(head.split()[4])
    for line in stages:
        busy = float(line.split()[1])
        threads = DECODERS if "decode" in line else 1
        assert 0 <= busy <= threads * total + 0.01
        assert "%" in line
    assert float(stages[1].split()[1]) > 0


def test_engine_and_certificates_take_no_longer_than_all(
    model: Path, sample_images: list[Path]
) -> None:
    with Predictor(model) as predictor:
        assert predictor.engine_seconds == predictor.certify_seconds == 0
        start = time.perf_counter()
        list(predictor(sample_images))
        seconds = time.perf_counter() - start
        assert 0 < predictor.engine_seconds < seconds
        assert 0 < predictor.certify_seconds < seconds
