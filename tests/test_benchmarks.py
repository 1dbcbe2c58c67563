"""The benchmark times the same function everywhere and says what it promises to say."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import make_network, random_pixels
from inference import cases, plan, quick, timing
from inference.engines import PLANNED, VARIANTS, WITH, CertifiedEngine
from inference.networks import multiplications, skew_kernels, skew_norm, trained_norms, write_model
from inference.opponents import DENSE, MODULES, SERIES_6, SERIES_15, TorchNetwork, torch_opponents
from inference.plain import exported_opponents, plain_cnn, shapes, strided_cnn
from inference.report import points, print_results, ticks, write_picture
from inference.results import Results, notes_of, rows_of
from inference.timing import Timing, interleave

from lipdeploy.exporters.freeze import freeze
from lipdeploy.training.architecture import Architecture, HeadName
from lipdeploy.training.checkpoint import load_model

TINY = Architecture(8, 3, width=4, depth=10)


@pytest.fixture(scope="module")
def tiny() -> Iterator[dict[int, cases.Measured]]:
    """A tiny network, everything that the quick benchmark does with the centre, for a moment."""
    case = replace(plan.QUICK, architecture=TINY, seconds=0.2)
    with pytest.MonkeyPatch.context() as patch, cases.model_of(case) as model:
        patch.setattr(timing, "TURN", 0.001)
        patch.setattr(timing, "PAIR_SECONDS", 0.1)
        yield {
            batch: cases.measure(case, cases.build(case, model, batch), model, batch)
            for batch in case.batches
        }


@pytest.mark.parametrize("padding", ["circular", "zero"])
@pytest.mark.parametrize(("size", "head"), [(8, "lln"), (11, "lln"), (8, "mlp")])
@pytest.mark.parametrize("name", [SERIES_15, SERIES_6, DENSE])
def test_opponents_compute_the_frozen_network(
    name: str, size: int, head: str, padding: str
) -> None:
    network = make_network(image_size=size, depth=10, padding=padding, head=head)
    if name == DENSE and padding == "zero":
        with pytest.raises(ValueError, match="another function"):
            MODULES[name](network)
        return
    pixels = random_pixels(3, size).astype(np.float32)
    frozen = freeze(network)
    expected = frozen.head.logits(frozen.features(pixels.astype(np.float64)))
    tolerance = 1e-5 if name != SERIES_6 else 0.1
    for way in torch_opponents(MODULES[name](network)):
        difference = np.abs(way.run(pixels) - expected).max() / np.abs(expected).max()
        assert difference < tolerance, way.kind
        assert name != SERIES_6 or difference > 1e-6


def test_a_dense_kernel_leaves_little_out_on_a_grid_larger_than_itself() -> None:
    network = make_network(image_size=16, head="lln")
    pixels = random_pixels(2, 16).astype(np.float32)
    fifteen, dense = (torch_opponents(MODULES[name](network))[0] for name in (SERIES_15, DENSE))
    expected = fifteen.run(pixels)
    difference = np.abs(dense.run(pixels) - expected).max() / np.abs(expected).max()
    assert 0 < difference < 1e-2


def test_other_heads_are_refused() -> None:
    with pytest.raises(TypeError, match="expected lln or mlp"):
        MODULES[SERIES_15](make_network(head="linear"))


def test_a_plain_cnn_is_the_same_in_every_way_and_has_the_grids_of_the_network() -> None:
    pixels = random_pixels(2, 8).astype(np.float32)
    ways = exported_opponents(plain_cnn(TINY), pixels)
    first, *others = (way.run(pixels) for way in ways)
    assert len(others) == 2
    for logits in others:
        np.testing.assert_allclose(logits, first, rtol=1e-4, atol=1e-5)
    assert [c_out for _, c_out, stride in shapes(TINY) if stride == 2][-1] == TINY.features


@pytest.mark.parametrize("make", [plain_cnn, strided_cnn])
def test_plain_cnns_have_a_head_of_the_same_shape(
    make: Callable[[Architecture], torch.nn.Module],
) -> None:
    def linear(head: HeadName) -> list[tuple[int, int]]:
        layers = make(replace(TINY, head=head)).modules()
        return [(m.in_features, m.out_features) for m in layers if isinstance(m, torch.nn.Linear)]

    n = TINY.features
    assert linear("lln") == [(n, TINY.classes)]
    assert linear("mlp") == [(n, n), (n, TINY.classes)]


def test_random_networks_have_kernels_as_large_as_trained_ones(tmp_path: Path) -> None:
    write_model(TINY, tmp_path / "model.pt")
    network = load_model(tmp_path / "model.pt").network
    with torch.no_grad():
        for kernel in skew_kernels(network):
            assert skew_norm(kernel()) == pytest.approx(trained_norms()[kernel.kernel_size], 0.1)


def test_skew_norm_is_the_norm() -> None:
    network = make_network(image_size=8)
    with torch.no_grad():
        taps = skew_kernels(network)[0]()
    steps = torch.arange(8) * (2 * torch.pi / 8)
    offsets = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).to(taps)
    angles = torch.cartesian_prod(steps, steps) @ offsets.T
    symbol = torch.tensordot(torch.polar(torch.ones_like(angles), angles), taps.cfloat(), dims=1)
    norm = float(torch.linalg.matrix_norm(symbol, ord=2).max())
    assert skew_norm(taps) == pytest.approx(norm, rel=0.05)
    assert skew_norm(taps) <= norm * 1.0001


def test_the_centre_needs_43_million_multiplications() -> None:
    assert multiplications(plan.CENTRE.architecture) == pytest.approx(43e6, rel=0.01)


def test_the_quick_benchmark_says_all_that_it_promises(tiny: dict[int, cases.Measured]) -> None:
    found = json.loads(json.dumps(quick.summary(tiny)))
    speedups = {"speedup_batch1", "speedup_batch8", "speedup_batch64", "speedup6_batch64"}
    others = {"max_logit_difference", "certificate_share", "matmul_fraction_batch64"}
    assert set(found) == speedups | others | {
        "vs_plain_cnn_batch64",
        "vs_strided_cnn_batch64",
        "accumulations",
    }
    assert set(found["accumulations"]) == {"blocked", "same-order"}
    for order, numbers in found["accumulations"].items():
        assert set(numbers) == speedups
        assert all(value > 0 for value in numbers.values()), order
    assert found["max_logit_difference"] < 1e-5
    # What certificates add can be less than the noise.
    assert all(found[name] > 0 for name in others - {"certificate_share"})
    assert found["certificate_share"] == pytest.approx(tiny[64].certificate_share, abs=0.001)


def test_no_share_is_said_of_an_engine_that_is_too_slow_to_be_timed(
    tiny: dict[int, cases.Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowed(functions: timing.Functions, seconds: float) -> object:
        return interleave(
            {**functions, PLANNED + WITH: partial(time.sleep, 1.0)}, seconds, longest=0.9
        )

    monkeypatch.setattr(cases, "interleave", slowed)
    case = replace(tiny[1].case, variants=(PLANNED,), series=(SERIES_15,), others={})
    with cases.model_of(case) as model:
        measured = cases.measure(case, cases.build(case, model, 1), model, 1)
    assert PLANNED + WITH in measured.skipped
    assert measured.certificate_share is None
    assert not any("certificates by the graph" in note for note in notes_of(measured))
    at_64 = replace(tiny[64], certificate_share=None)
    assert quick.summary(tiny | {64: at_64})["certificate_share"] is None


def test_every_row_is_printed_and_kept(
    tiny: dict[int, cases.Measured], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for one in tiny.values() for row in rows_of(one, memory=False)]
    assert len(rows) == 3 * (2 + 2 + len(plan.QUICK.variants))
    results = Results({"cpus": 2}, rows, ["a: b: c"], notes_of(tiny[64]))
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results
    print_results(results)
    out = capsys.readouterr().out
    assert out.count(PLANNED) == 3
    assert "skipped: a: b: c" in out
    assert "randomised smoothing" in out
    assert "certificates by the graph add" in out
    write_picture(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_says_where_a_batch_is_another(tiny: dict[int, cases.Measured]) -> None:
    rows = [row for one in tiny.values() for row in rows_of(one, memory=False)]
    wide = [replace(row, factor="width", width=128) for row in rows if row.batch == 8]
    assert ticks(rows, "batch") == {1: "1", 8: "8", 64: "64"}
    assert ticks(rows + wide, "width") == {TINY.width: f"{TINY.width}", 128: "128\n(batch 8)"}
    assert ticks(rows + wide, "depth") == {10: "10"}
    at = {row.batch: 1e3 / row.images for row in rows if row.opponent == PLANNED}
    assert points(rows + wide, "width", PLANNED) == [(TINY.width, at[64]), (128, at[8])]


def test_memory_is_measured_in_another_process(tiny: dict[int, cases.Measured]) -> None:
    measured = replace(tiny[64], opponents={PLANNED: tiny[64].opponents[PLANNED]})
    (row,) = rows_of(measured, memory=True)
    assert row.peak is None or 0 < row.peak < 1 << 30


def test_an_opponent_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    case = replace(plan.QUICK, architecture=TINY, variants=(PLANNED,))
    with cases.model_of(case) as model:
        built = cases.build(case, model, 1)
        network = load_model(model).network
        network.mean += 1
        built.series[SERIES_15] = MODULES[SERIES_15](network)
        with pytest.raises(cases.WrongOpponentError, match="differs from float64"):
            cases.measure(case, built, model, 1)


def test_what_cannot_be_built_is_skipped_with_its_reason() -> None:
    case = replace(plan.QUICK, architecture=TINY, variants=tuple(VARIANTS), build_seconds=20)
    with cases.model_of(case) as model:
        built = cases.build(case, model, 1)
        assert set(built.skipped) | set(built.engines) == set(VARIANTS)
        assert "zero padding" in built.skipped["engine, all taylor"]
        built = cases.build(replace(case, build_seconds=1e-3, series=()), model, 1)
        assert not built.engines
        assert built.skipped[PLANNED].startswith("TimeoutError: 0 s were over before")


def test_rounds_hit_all_functions_alike_and_slow_ones_are_left_out() -> None:
    order: list[str] = []

    def sleeper(name: str, seconds: float) -> Callable[[], None]:
        return lambda: (time.sleep(seconds), order.append(name))[-1]

    functions = {"a": sleeper("a", 0.06), "b": sleeper("b", 0.12), "c": sleeper("c", 0.6)}
    timings, skipped = interleave(functions, 1.0, longest=0.5)
    assert set(skipped) == {"c"}
    assert "0.5 s" in skipped["c"]
    rounds = order[3:]
    assert rounds == (["a", "b", "b", "a"] * len(rounds))[: len(rounds)]
    assert timings["b"].over(timings["a"]) == pytest.approx(2, rel=0.5)
    assert len(timings["a"].rounds) >= 5


def test_what_a_function_takes_beyond_another_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAIR_SECONDS", 0.3)
    share = timing.share_added(partial(time.sleep, 0.02), partial(time.sleep, 0.03))
    assert share == pytest.approx(0.5, abs=0.2)


def test_the_share_of_certificates_is_that_of_the_planned_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "PAIR_SECONDS", 0.3)
    seconds = {PLANNED: 0.02, PLANNED + WITH: 0.03, "other": 0.05, "other" + WITH: 0.05}
    functions = {name: partial(time.sleep, value) for name, value in seconds.items()}
    engine = cast("CertifiedEngine", None)
    for engines, share in (({"other": engine, PLANNED: engine}, 0.5), ({"other": engine}, 0.0)):
        found = cases.certificate_share(cases.Built(engines), functions)
        assert found == pytest.approx(share, abs=0.2)


def test_a_timing_has_a_median_and_quartiles() -> None:
    found = Timing((5.0, 1.0, 4.0, 2.0, 3.0))
    assert found.median == 3
    assert found.spread == (2, 4)
    assert found.over(Timing((1.0, 1.0, 1.0, 1.0, 1.0))) == 3


def test_without_a_gpu_the_gpu_benchmark_ends_with_one_line(source: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is CUDA")
    code = (
        "import sys, gpu; from dataclasses import replace; from inference.plan import shape\n"
        "gpu.CASE = replace(gpu.CASE, architecture=shape(width=4, image_size=8))\n"
        "sys.exit(gpu.main())"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(source / "benchmarks")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert "CUDA" in last
    assert "Traceback" not in finished.stderr


def test_the_opponents_module_refuses_unknown_layers() -> None:
    network = make_network(head="lln")
    network.body.append(torch.nn.ReLU())
    with pytest.raises(TypeError, match="ReLU"):
        TorchNetwork(network, torch.nn.Identity)
