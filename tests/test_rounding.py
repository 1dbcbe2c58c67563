"""The models of arithmetic, against emulations of each, and against their worst cases."""

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lipdeploy.arithmetic import ARITHMETICS, BFLOAT16, FLOAT16, FLOAT32, FLOAT64, TF32, Arithmetic
from lipdeploy.directed import AffineBound
from lipdeploy.errors import BoundError
from lipdeploy.rounding import (
    LONGEST_SUMS,
    Accumulation,
    Product,
    Rounding,
    Step,
    compose,
    tree_levels,
)

TENSOR_CORES = [TF32, FLOAT16, BFLOAT16]


def cut(values: np.ndarray, bits: int, *, truncate: bool) -> np.ndarray:
    """Numbers with this many significand bits."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    scaled = np.ldexp(mantissa, bits)
    kept = np.trunc(scaled) if truncate else np.rint(scaled)
    return np.ldexp(kept, exponent - bits)


def as_stored(arithmetic: Arithmetic, x: np.ndarray) -> np.ndarray:
    """Numbers as an engine holds them where a product reads them."""
    is_stored = arithmetic.storage_roundoff > 0
    return cut(x, arithmetic.operand_bits, truncate=False) if is_stored else x


def emulated(arithmetic: Arithmetic, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x @ weights with operands cut, products summed one by one in float32, results stored."""
    truncate = arithmetic is TF32
    a, b = (cut(v, arithmetic.operand_bits, truncate=truncate) for v in (x, weights))
    total = np.zeros((len(x), weights.shape[1]), dtype=np.float32)
    for k in range(weights.shape[0]):
        total = total + (a[:, k : k + 1] * b[k]).astype(np.float32)
    stored = total.astype(np.float64)
    if arithmetic.storage_roundoff:
        stored = cut(stored, arithmetic.operand_bits, truncate=False)
    return stored


@pytest.mark.parametrize("arithmetic", TENSOR_CORES, ids=lambda a: a.name)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 40))
@example(seed=4889, length=23)  # draws a weight of 3.2e-5, which float16 may flush
def test_tensor_cores_err_no_more_than_their_model(
    arithmetic: Arithmetic, seed: int, length: int
) -> None:
    """Weights need not fit in the bits of operands, but are none that an engine may flush."""
    generator = np.random.default_rng(seed)
    x = as_stored(arithmetic, generator.normal(size=(6, length)).astype(np.float32))
    weights = generator.normal(size=(length, 5)).astype(np.float32)
    weights[np.abs(weights) < arithmetic.smallest_normal] = 0
    step = Rounding(arithmetic).product(Product(weights, 5))
    exact = x.astype(np.float64) @ weights.astype(np.float64)
    errors = np.linalg.norm(emulated(arithmetic, x, weights) - exact, axis=1)
    assert np.all(errors <= step.rounding_upper * np.linalg.norm(x, axis=1) + step.underflow)


@pytest.mark.parametrize("arithmetic", TENSOR_CORES, ids=lambda a: a.name)
def test_cutting_operands_can_be_as_bad_as_the_model_says(arithmetic: Arithmetic) -> None:
    """An operand just below the next number that fits, times a weight of the same kind."""
    value = np.array(
        [[1 + 2.0 ** (1 - arithmetic.operand_bits) * (0.499, 0.999)[arithmetic is TF32]]]
    )
    step = Rounding(arithmetic).product(Product(value, 1))
    x = as_stored(arithmetic, value)
    error = abs(emulated(arithmetic, x, value) - x * value)[0, 0]
    assert 0.4 * step.rounding_upper * x[0, 0] <= error <= step.rounding_upper * x[0, 0]


@pytest.mark.parametrize("arithmetic", [FLOAT16, BFLOAT16], ids=lambda a: a.name)
def test_what_is_stored_in_the_bits_of_operands_is_cut_once(arithmetic: Arithmetic) -> None:
    """A product with 1 is exact but for its storing, which the model counts once."""
    once = arithmetic.storage_roundoff
    step = Rounding(arithmetic).product(Product(np.eye(3, dtype=np.float16), 3))
    assert once <= step.rounding_upper <= 1.01 * once
    assert Rounding(TF32).product(Product(np.eye(3, dtype=np.float16), 3)).rounding_upper > 2.0**-10


@pytest.mark.parametrize("arithmetic", [FLOAT16, BFLOAT16], ids=lambda a: a.name)
def test_the_last_addition_of_a_tree_is_stored_once(arithmetic: Arithmetic) -> None:
    """Each entry is stored as the result of its block, and as that of the addition."""
    weights = np.eye(32, dtype=np.float16)
    step = Rounding(arithmetic, "blocked", 16).product(Product(weights, 32))
    assert 2 <= step.rounding_upper / arithmetic.storage_roundoff <= 2.05


def test_weights_that_fit_cost_nothing() -> None:
    fits = np.array([[1 + 2.0**-10, 0.5]])
    assert TF32.holds(fits)
    assert not TF32.holds(fits + 2.0**-11)
    assert not BFLOAT16.holds(fits)
    assert all(a.holds(fits.astype(np.float16)) for a in (FLOAT64, FLOAT32, TF32))
    assert not FLOAT32.holds(np.array([1e-40]))
    assert FLOAT64.holds(np.array([1e-40, 0.0]))
    with pytest.raises(BoundError, match="no normal number in float32"):
        Rounding(FLOAT32).product(Product(np.array([[1e-40]]), 1))
    with pytest.raises(BoundError, match="no normal number in float32"):
        Rounding(FLOAT32).product(Product(np.array([[0.1]]), 1))


def test_only_arithmetics_with_a_practical_model_have_a_program() -> None:
    assert {name for name, a in ARITHMETICS.items() if not a.has_program} == {
        "tf32",
        "float16",
        "bfloat16",
    }


def test_flushed_numbers_are_covered() -> None:
    """Every product and sum below the smallest normal number becomes 0."""
    eta = FLOAT32.smallest_normal
    length, outputs = 9, 4
    weights = np.full((length, outputs), 0.5, dtype=np.float32)
    x = np.full((1, length), 1.99 * eta)
    lost = np.linalg.norm(x @ weights.astype(float))
    step = Rounding(FLOAT32).product(Product(weights, outputs))
    assert lost > 0.5 * length * eta * outputs**0.5 * 0.9
    assert lost <= step.underflow <= 10 * lost
    # Operands below it count as 0, too.
    x = np.full((1, length), 0.99 * eta)
    large = np.full((length, outputs), 1e20, dtype=np.float32)
    step = Rounding(FLOAT32).product(Product(large, outputs))
    assert np.linalg.norm(x @ large.astype(float)) <= step.underflow
    assert Rounding(FLOAT32).flushed(25) >= 2 * eta * 5


def test_sums_of_half_precision_lose_only_what_is_stored_or_read() -> None:
    """Sixty-four products far below the smallest normal float16 add up to just below it."""
    eta = FLOAT16.smallest_normal
    length, outputs = 64, 4
    weights = np.full((length, outputs), 0.99 / length).astype(np.float16)
    x = np.full(length, eta)
    lost = np.linalg.norm(x @ weights.astype(float))
    step = Rounding(FLOAT16).product(Product(weights, outputs))
    assert 0.9 * eta * outputs**0.5 < lost < eta * outputs**0.5
    assert lost <= step.underflow <= 5 * lost


@pytest.mark.parametrize("block", [None, 16])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.sampled_from([3, 16, 40, 200]))
def test_half_precision_near_its_smallest_numbers_is_within_its_bound(
    block: int | None, seed: int, length: int
) -> None:
    """Operands and what is stored are flushed, sums in float32, several x at once."""
    generator = np.random.default_rng(seed)
    x = as_stored(FLOAT16, generator.normal(size=(5, length)) * 2.0**-14)
    weights = FLOAT16.nearest(generator.normal(size=(length, 6)) / length**0.5)
    parts = []
    for start in range(0, length, block or length):
        cuts = slice(start, start + (block or length))
        products = (flushed(x)[:, cuts, None] * weights[cuts]).astype(np.float32)
        parts.append(flushed(as_stored(FLOAT16, products.sum(axis=1, dtype=np.float32))))
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [flushed(as_stored(FLOAT16, sum(pair))) for pair in pairs]
    step = Rounding(FLOAT16, "blocked", block).product(Product(weights, 5 * 6))
    error = np.linalg.norm(parts[0] - x @ weights.astype(float))
    assert error <= step.rounding_upper * np.linalg.norm(x) + step.underflow


def flushed(values: np.ndarray) -> np.ndarray:
    """Numbers too small for float16 are 0."""
    return np.where(np.abs(values) < FLOAT16.smallest_normal, 0.0, values)


def tree(values: list[Fraction], block: int) -> list[int]:
    """Additions on each level when a graph joins blocks as `GraphBuilder.sum` does."""
    parts = [values[i : i + block] for i in range(0, len(values), block)]
    levels = []
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        levels.append(sum(len(pair) == 2 for pair in pairs))
        parts = [list(itertools.chain(*pair)) for pair in pairs]
    return levels


@given(st.integers(1, 3000), st.integers(1, 200))
def test_the_tree_that_is_counted_is_the_one_that_is_built(n: int, block: int) -> None:
    levels = tree_levels(n, block)
    assert levels == tree([Fraction(0)] * n, block)
    assert sum(levels) == -(-n // block) - 1


def test_the_graph_adds_blocks_as_they_are_counted() -> None:
    from lipdeploy.exporters.onnx_graph import GraphBuilder

    for n in (16, 17, 100, 512):
        graph = GraphBuilder(16)
        graph.product("x", graph.weight("w", np.ones((n, 2), dtype=np.float32)), axis=1)
        kinds = [node.op_type for node in graph.nodes]
        assert kinds.count("MatMul") == -(-n // 16)
        assert kinds.count("Add") == sum(tree_levels(n, 16))


@pytest.mark.parametrize(
    ("accumulation", "longest"), [*LONGEST_SUMS.items(), ("same-order", 16)], ids=str
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.sampled_from([1, 7, 16, 17, 130, 300]))
def test_sums_in_many_orders_err_no_more_than_their_bound(
    accumulation: Accumulation, longest: int | None, seed: int, length: int
) -> None:
    """Any terms make a block; inside in any order, in `same-order` one for each half of outputs."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(length, 6)).astype(np.float32)
    x = generator.normal(size=length).astype(np.float32)
    rounding = Rounding(FLOAT32, accumulation, longest)
    step = rounding.product(Product(weights, 6, nodes=2))
    block = longest or length
    terms, parts = generator.permutation(length), []
    for start in range(0, length, block):
        shared = [generator.permutation(terms[start : start + block]) for _ in range(2)]
        sums = []
        for column in range(6):
            own = shared[column // 3]
            if accumulation != "same-order":
                own = generator.permutation(own)
            total = np.float32(0)
            for k in own:
                total = np.float32(total + np.float32(x[k] * weights[k, column]))
            sums.append(total)
        parts.append(np.array(sums))
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    exact = x.astype(np.float64) @ weights.astype(np.float64)
    error = np.linalg.norm(parts[0] - exact)
    assert error <= step.rounding_upper * np.linalg.norm(x.astype(np.float64))


def test_a_chain_of_steps_bounds_the_chain() -> None:
    """Each step scales by L and errs by a ||x||, all in one direction."""
    steps = [Step(2.0, 1e-3, 1e-9), Step(0.5, 1e-4, 1e-9), Step(3.0, 1e-2, 1e-9)]
    exact, computed = 1.0, 1.0
    for step in steps:
        exact *= step.norm_upper
        computed = (step.norm_upper + step.rounding_upper) * computed + step.underflow
    whole = compose(steps)
    assert whole.norm_upper == pytest.approx(exact)
    error = computed - exact
    assert error <= whole.rounding_upper + whole.underflow <= error * (1 + 1e-9)


def test_overflow_is_refused() -> None:
    from helpers import make_network

    from lipdeploy.engine_error import ErrorAnalysis
    from lipdeploy.exporters.freeze import freeze

    small, large = (
        ErrorAnalysis(
            freeze(make_network(bias_scale=scale)).stored_as("float32").rounded_to(FLOAT16)
        )
        for scale in (0.3, 1e4)
    )
    assert small.errors(Rounding(FLOAT16)).features.slope > 0
    assert large.errors(Rounding(FLOAT32)).features.slope > 0
    with pytest.raises(BoundError, match="overflow in float16"):
        large.errors(Rounding(FLOAT16))
    sums = replace(FLOAT16, largest_sum=1e4)
    with pytest.raises(BoundError, match="overflow in float16"):
        small.errors(Rounding(sums))


def test_long_sums_are_refused_where_the_model_ends() -> None:
    assert FLOAT32.gamma(1000) >= 1000 * 2.0**-24
    with pytest.raises(BoundError, match="too long"):
        FLOAT32.gamma(1 << 20)


def test_affine_bounds_round_up() -> None:
    bound = AffineBound(0.1, 0.2)
    total = bound.plus(bound).times(3.0)
    assert Fraction(total.constant) >= 6 * Fraction(0.1)
    assert Fraction(float(total(np.array([0.7]))[0])) >= 6 * (
        Fraction(0.1) + Fraction(0.2) * Fraction(0.7)
    )


def test_heads_whose_logits_can_overflow_are_refused() -> None:
    from helpers import make_network

    from lipdeploy.engine_error import ErrorAnalysis
    from lipdeploy.exporters.freeze import freeze
    from lipdeploy.heads import LinearHead

    network = freeze(make_network()).stored_as("float32")
    weight, bias = network.head.weights()["weight"], network.head.weights()["bias"]
    large = replace(network, head=LinearHead(weight * np.float32(1e30), bias))
    with pytest.raises(BoundError, match="numbers of the head"):
        ErrorAnalysis(large).errors(Rounding(FLOAT32))


def test_float64_bounds_hardly_move_with_the_last_digits_of_a_norm() -> None:
    """Another machine proves a norm that differs in its last digits, and must agree."""
    steps = [Step(1 + 1e-3, 2e-14)] * 9
    nearby = [Step((1 + 1e-3) * (1 + 1e-12), 2e-14)] * 9
    ratio = compose(nearby).rounding_upper / compose(steps).rounding_upper
    assert abs(ratio - 1) < 1e-9
    assert compose(steps).rounding_upper == pytest.approx((1 + 1e-3) ** 8 * 9 * 2e-14, rel=1e-6)


def test_what_float32_cannot_hold_is_never_emitted() -> None:
    from lipdeploy.errors import ExportError
    from lipdeploy.exporters.onnx_graph import GraphBuilder

    with pytest.raises(ExportError, match="does not fit into float32"):
        GraphBuilder().weight("layer0.bias", np.array([1 + 2.0**-40]))
