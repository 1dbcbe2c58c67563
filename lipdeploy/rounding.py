"""What rounding can do to one step of an evaluation.

An `Arithmetic` says how precisely a machine computes; an accumulation says what is known of the
order of its sums; together, a `Rounding`, they bound the error of a matrix product y = W x with
sums of length n by a ||x||_2. With u the unit roundoff and gamma(n) = n u / (1 - n u):

*any order*: every computed sum is within gamma(n) |W| |x| of the exact one, elementwise, whatever
the order and with or without fused multiply-adds (Higham, "Accuracy and stability of numerical
algorithms", 2002, sec. 3.1), so a = gamma(n) || |W| ||_2.

*same order*: all outputs of one input vector add their terms in the same order, that is, in the
same binary tree T. The local error of an inner node v of T is then a *vector* over the outputs, at
most u times the vector of the computed partial sums there. Let P bound the norm of W restricted to
any subset of its columns, for which ||W||_2 serves; A = || |W| ||_2; D the sum of the norms of all
local errors. Products are rounded first: their errors, u |W| |x| elementwise, have norm at most
u A ||x|| in every partial sum. The partial sums at v have norm at most P ||x|| + u A ||x|| + D, and
T has n - 1 inner nodes, so D <= (n - 1) u (P + u A) ||x|| / (1 - (n - 1) u); a = D / ||x|| + u A.
(With fused multiply-adds the products are not rounded, and the bound holds all the more.)

Both may be taken of a graph that cuts long sums into blocks of at most B terms, one matrix product
each, and adds their results pair by pair. (Which terms make a block is the graph's choice: channels
may lie in another order there, so no bound may depend on it.) If block i has error a_i ||x_i||, all
blocks together have at most (sum_i a_i^2)^(1/2) ||x||, by Cauchy-Schwarz. An addition node over the
blocks in S has local error at most u (P ||x_S|| + errors so far); nodes of one level have disjoint
S, so a level of k nodes adds at most u P k^(1/2) ||x||. *blocked* is any order inside of short
blocks: nothing is assumed of the engine but that it runs the nodes of the graph as they are.

Where operands are rounded to fewer bits first (tensor cores), where results are stored in fewer
bits, and where small numbers are flushed to zero, terms for that are added (`Rounding.product`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lipdeploy.arithmetic import FLOAT32, Arithmetic
from lipdeploy.bounds import TINY, absolute_norms_upper, norms_upper, up
from lipdeploy.directed import MARGIN, AffineBound
from lipdeploy.errors import BoundError

Array = NDArray[np.float64]
Accumulation = Literal["any-order", "same-order", "blocked"]
ACCUMULATIONS: tuple[Accumulation, ...] = get_args(Accumulation)

LONGEST_SUMS: dict[Accumulation, int | None] = {
    "any-order": None,
    "same-order": 512,
    "blocked": 16,
}
"""Longest sum of the graph that is made for each, unless another is asked for; None: no limit."""

SHORTEST_LIMIT, LARGEST_LIMIT = 8, 1 << 20
"""Limits of sums that a graph can have; shorter ones would need too many nodes."""


@dataclass(frozen=True)
class Step:
    """One linear step of an evaluation.

    Attributes:
        norm_upper: L, an upper bound of the spectral norm of the exact step.
        rounding_upper: a, such that ||fl(step(x)) - step(x)||_2 <= a ||x||_2 + underflow.
        underflow: what numbers flushed to zero can add, whatever x is.
        growth: partial sums are at most growth ||x||_2 in absolute value,
        results: and what is stored on the way results ||x||_2.
    """

    norm_upper: float
    rounding_upper: float
    underflow: float = 0.0
    growth: float = 1.0
    results: float = 1.0


def compose(steps: Iterable[Step]) -> Step:
    """The step made of several, first to last.

    By induction: if ||x_i|| is at most N_i ||x|| and the computed x_i differs by d_i, then
    d_(i+1) <= L d_i + a (||x_i|| + d_i) + t = (L + a) d_i + a N_i ||x|| + t.
    """
    norm, rounding, underflow, growth, results = 1.0, 0.0, 0.0, 1.0, 1.0
    for step in steps:
        growth = max(growth, (norm + rounding) * step.growth * MARGIN)
        results = max(results, (norm + rounding) * step.results * MARGIN)
        factor = up(step.norm_upper + step.rounding_upper)
        rounding = (rounding * factor + norm * step.rounding_upper) * MARGIN
        underflow = (underflow * factor + step.underflow) * MARGIN
        norm = up(norm * step.norm_upper)
    return Step(norm, rounding, underflow, growth, results)


def alongside(steps: Sequence[Step]) -> Step:
    """The step made of several that act on disjoint parts of x, with disjoint results."""
    return Step(
        max(step.norm_upper for step in steps),
        max(step.rounding_upper for step in steps),
        sum(step.underflow for step in steps) * MARGIN,
        max(step.growth for step in steps),
        max(step.results for step in steps),
    )


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix product x -> x @ M, or a stack of them on disjoint parts of x.

    Attributes:
        matrices: M, shape (..., n, outputs), applied from the right.
        size: numbers that come out, over the whole grid.
        nodes: into how many products the graph cuts the outputs of one x; each may have an order of
            its own.
    """

    matrices: NDArray[Any]
    size: int
    nodes: int = 1
    _known: dict[int, float] = field(default_factory=dict, repr=False)

    @property
    def length(self) -> int:
        """Terms of each sum."""
        return int(self.matrices.shape[-2])

    @cached_property
    def norm_upper(self) -> float:
        """Largest spectral norm of the stack."""
        return float(np.max(norms_upper(self.matrices), initial=0.0))

    @cached_property
    def absolute_norm_upper(self) -> float:
        """Largest norm of |M| of the stack."""
        return float(np.max(absolute_norms_upper(self.matrices), initial=0.0))

    def blocks_norm_upper(self, block: int) -> float:
        """Largest (sum_i || |M_i| ||^2)^(1/2) of the stack, M_i blocks of at most `block` rows."""
        if block not in self._known:
            total = np.zeros(self.matrices.shape[:-2])
            for start in range(0, self.length, block):
                part = self.matrices[..., start : start + block, :]
                total = total + absolute_norms_upper(part) ** 2
            self._known[block] = float(np.max(np.sqrt(total), initial=0.0)) * MARGIN
        return self._known[block]


@dataclass(frozen=True)
class Rounding:
    """An arithmetic, and what is known of the order of its sums.

    Attributes:
        arithmetic: how precisely it computes.
        accumulation: "any-order", "same-order" or "blocked".
        block: longest sum of the graph; None for no limit.
    """

    arithmetic: Arithmetic
    accumulation: Accumulation = "any-order"
    block: int | None = None

    @classmethod
    def of_graph(cls, arithmetic: Arithmetic, accumulation: Accumulation) -> "Rounding":
        """That of the graph that is made for an accumulation, where nothing else is asked for."""
        return cls(arithmetic, accumulation, LONGEST_SUMS[accumulation])

    @property
    def name(self) -> str:
        """As in the manifest, such as "float32 same-order"."""
        return f"{self.arithmetic.name} {self.accumulation}"

    @property
    def of_head(self) -> "Rounding":
        """How the head computes: in float32 behind a body that stores results in fewer bits."""
        is_half = self.arithmetic.storage_roundoff > 0
        return replace(self, arithmetic=FLOAT32) if is_half else self

    def terms(self, n: int) -> int:
        """K such that a sum of n products is within gamma(k) of exact, relative to absolute values.

        Cut into blocks each term meets at most as many roundings as a block and the tree have.
        """
        if self.block is None or n <= self.block:
            return n
        return self.block + len(tree_levels(n, self.block))

    def product(self, product: Product) -> Step:
        """A matrix product in this arithmetic (see the module).

        Operands cut to fewer bits change by a relative u_in each: L u_in for x, unless x is stored
        in those bits (`Arithmetic.input_roundoff`); || |M| || u_in for M, unless M has no more.
        Storing changes the result by a relative u_store, that of a tree of additions in
        `_accumulated`.
        """
        arithmetic, n = self.arithmetic, product.length
        norm, absolute = product.norm_upper, product.absolute_norm_upper
        operand, of_input = arithmetic.operand_roundoff, arithmetic.input_roundoff
        is_held = arithmetic.holds(product.matrices)
        if not is_held and (operand == 0.0 or arithmetic.is_flushed(product.matrices)):
            raise BoundError(f"a weight is no normal number in {arithmetic.name}")
        of_weights = 0.0 if is_held else absolute * operand
        growth = (1 + operand) ** 2
        error = norm * of_input + of_weights * (1 + of_input) + self._accumulated(product) * growth
        if n <= (self.block or n):
            error += arithmetic.storage_roundoff * (norm + error)
        results = (norm + error) * growth * 1.01
        flushed = self._flushed(product)
        return Step(norm, error * MARGIN, flushed, absolute * growth * 1.01, results)

    def _flushed(self, product: Product) -> float:
        """What a product can lose when numbers become 0.

        For each output n products and n - 1 sums may lose a number below that of sums each, and
        the results of its k blocks and of the k - 1 additions one below eta each where they are
        stored, or else are read; half as much again covers that what was lost is rounded on. As
        operands the n entries of an x may lose eta each, if need be others for each output: at
        most || |M| || n^(1/2) eta for each x, of which there are as many as outputs of one fit
        into all. M loses nothing, since `Arithmetic.holds` finds it (M is float16 or flushed
        before it is stored; else `BoundError`).
        """
        arithmetic, n = self.arithmetic, product.length
        stores = 3 * -(-n // (self.block or n)) if arithmetic.storage_roundoff else 0
        eta, inputs = arithmetic.smallest_normal, product.size / product.matrices.shape[-1]
        of_sums = (2 * n * arithmetic.smallest_sum + stores * eta) * math.sqrt(product.size)
        of_operands = product.absolute_norm_upper * math.sqrt(n) * eta * math.sqrt(inputs)
        return (of_sums + of_operands) * MARGIN + TINY

    def joined(self, products: Sequence[Product]) -> Step:
        """Matrix products of disjoint parts of x, whose results are added one after the other.

        With a_i the constants of the products, their errors are together at most
        (sum_i a_i^2)^(1/2) ||x|| =: a ||x||, by Cauchy-Schwarz, and each addition rounds a vector
        of norm at most (||M|| + a + errors of additions so far) ||x||.
        """
        if len(products) == 1:
            return self.product(products[0])
        steps = [self.product(product) for product in products]
        whole = Product(np.concatenate([p.matrices for p in products], axis=-2), products[0].size)
        error = math.sqrt(sum(step.rounding_upper**2 for step in steps)) * MARGIN
        added = (len(products) - 1) * self.entry_roundoff
        error += added * (whole.norm_upper + error) / (1 - added)
        flushed = sum(step.underflow for step in steps) + len(steps) * self.flushed(whole.size)
        growth = sum(step.growth for step in steps)
        results = sum(step.results for step in steps) + whole.norm_upper + error
        return Step(whole.norm_upper, error * MARGIN, flushed * MARGIN, growth, results)

    def _accumulated(self, product: Product) -> float:
        """The bound a of the module's text, operands as they are; results of blocks are stored."""
        u, n = self.arithmetic.unit_roundoff, product.length
        norm, absolute = product.norm_upper, product.absolute_norm_upper
        block = n if self.block is None else min(n, self.block)
        levels = tree_levels(n, block)
        stored = self.arithmetic.storage_roundoff if levels else 0.0
        kept = (1 + stored) ** (1 + len(levels))
        elementwise = ((1 + self.arithmetic.gamma(self.terms(n))) * kept - 1) * absolute
        if stored == 0.0:
            elementwise = self.arithmetic.gamma(self.terms(n)) * absolute
        if self.accumulation == "same-order":
            # Errors of products add elementwise, u A; the others, c (P + u A) ||x_i|| in a block of
            # any terms, by Cauchy-Schwarz.
            factor = (block - 1) * u / (1 - (block - 1) * u)
            # Orders of several nodes: each on its own outputs, so the squares of their errors add.
            parts = math.sqrt((sum(levels) + 1) * product.nodes)
            inside = u * absolute + factor * parts * (norm + u * absolute)
        else:
            # At least gamma(B) A, what elementwise errors of blocks of any terms add up to.
            blocks = absolute if block == n else product.blocks_norm_upper(block)
            inside = self.arithmetic.gamma(block) * blocks
        # Blocks' results are stored: sum_i s (P ||x_i|| + errors), at most s (P sqrt(k) + inside).
        inside += stored * (norm * math.sqrt(sum(levels) + 1) + inside)
        # D <= w (P per_level + nodes (inside + D)) for the sum D of the additions' local errors,
        # w of an addition whose result is stored
        per_level, nodes = sum(math.sqrt(level) for level in levels), sum(levels)
        w = u + stored + u * stored
        if nodes * w >= 0.5:
            return elementwise * MARGIN
        between = w * (norm * per_level + nodes * inside) / (1 - nodes * w)
        return min(elementwise, (inside + between) * MARGIN)

    @property
    def entry_roundoff(self) -> float:
        """Relative error of one operation on two numbers, result stored."""
        return (self.arithmetic.unit_roundoff + self.arithmetic.storage_roundoff) * MARGIN

    def distance_of_pairs(self, size: int, largest: float) -> AffineBound:
        """Error of sqrt(p^2 + q^2) for `size` pairs, as a function of the norm of all of them.

        Squares, sum and root are each within u, the root of engines within 4 u; under the root
        relative errors halve: at most (2 u) / 2 + 4 u and terms of higher order, 6 u. Of the
        squares and their sum each may lose what is below eta, so that a root is off by at most
        sqrt(3 eta) before it is rounded, and the root itself may lose eta.

        Args:
            size: number of pairs.
            largest: bound of the absolute value of each number.

        Raises:
            BoundError: if a square can overflow, or results are stored in fewer bits.
        """
        arithmetic = self.arithmetic
        if arithmetic.storage_roundoff > 0:
            raise BoundError(f"projection pooling is not bounded in {arithmetic.name}")
        if not largest * MARGIN < math.sqrt(arithmetic.largest / 2):
            raise BoundError(f"numbers of this network can overflow in {arithmetic.name}")
        lost = 2 * math.sqrt(3 * arithmetic.smallest_normal)
        return AffineBound(lost * math.sqrt(size) * MARGIN, 6 * arithmetic.unit_roundoff * MARGIN)

    def flushed(self, size: int) -> float:
        """What `size` sums of two numbers can lose when operands or results become 0."""
        return 4 * self.arithmetic.smallest_normal * math.sqrt(size) + TINY


STANDARD = Rounding.of_graph(FLOAT32, "blocked")
"""How an engine computes where nothing else is asked for."""


def tree_levels(n: int, block: int) -> list[int]:
    """Additions on each level when blocks of at most `block` of n terms are joined pair by pair."""
    levels, parts = [], -(-n // block)
    while parts > 1:
        levels.append(parts // 2)
        parts -= parts // 2
    return levels
