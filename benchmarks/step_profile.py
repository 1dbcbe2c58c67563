"""Where a training step spends its time, and what limits it: `make step-profile`.

Every operation is timed by itself, products of matrices beside one of side 1024 of the same type.
Then the same step, compiled, which each network does in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

import torch
from inference.results import describe_machine
from inference.timing import Timing, interleave, seconds_of
from rich.console import Console
from rich.table import Table
from steps import COMPILED, OURS, WHOLE, Case, step_of
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

STEPS = 10
SECONDS, LONGEST = 20.0, 60.0
SIDE = 1024
CASES = tuple(case for case in WHOLE if case.batch == 128)

PRODUCTS, ARITHMETIC = "matrix products", "arithmetic"
KINDS = {
    "copies, casts, joins": {
        *("copy_", "_to_copy", "clone", "cat", "stack", "index", "index_put", "index_put_"),
        *("flip", "constant_pad_nd", "fill_", "zero_", "new_zeros", "zeros_like", "empty_like"),
        *("new_empty", "new_empty_strided", "_unsafe_view"),
    },
    "comparisons, sorting": {
        *("ge", "gt", "le", "lt", "eq", "where", "maximum", "minimum", "max", "sort", "gather"),
    },
    "norms: vectors": {"mv", "addmv", "addmv_", "dot", "linalg_vector_norm", "_foreach_norm"},
}
"""Names of operations. Others are products where torch counts their flops, else arithmetic."""


@dataclass
class Work:
    """What operations of one kind took.

    Attributes:
        seconds: of all.
        calls: number of operations.
        flops: of products.
    """

    seconds: float = 0.0
    calls: int = 0
    flops: int = 0


@dataclass
class Watch(TorchDispatchMode):
    """Times every operation that runs under it.

    Attributes:
        work: by kind and the dtype of the result.
    """

    work: defaultdict[tuple[str, str], Work] = field(default_factory=lambda: defaultdict(Work))

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run it and note what it took."""
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        if not func.is_view:
            results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            work = self.work[kind_of(func), name_of(results[0].dtype) if results else ""]
            work.seconds += seconds
            work.calls += 1
            if func.overloadpacket in flop_registry:
                formula = flop_registry[func.overloadpacket]
                work.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def kind_of(func: OpOverload) -> str:
    """Of an operation."""
    if func.overloadpacket in flop_registry:
        return PRODUCTS
    name = func.name().split("::")[1].split(".")[0]
    return next((kind for kind, names in KINDS.items() if name in names), ARITHMETIC)


def name_of(dtype: torch.dtype) -> str:
    """As in a table."""
    return str(dtype).removeprefix("torch.")


def profile(case: Case) -> tuple[Mapping[tuple[str, str], Work], dict[str, Timing]]:
    """Operations of `STEPS` steps; a step that nobody watches, beside products by their dtypes."""
    step = step_of(OURS, case)
    functions = {OURS: step}
    for dtype in (torch.bfloat16, torch.float32):
        matrix = torch.randn(SIDE, SIDE).to(dtype)
        functions[name_of(dtype)] = lambda m=matrix: m @ m
    for function in functions.values():
        function()
    timings, skipped = interleave(functions, SECONDS, longest=LONGEST)
    if skipped:
        raise SystemExit(f"not timed: {skipped}")
    with Watch() as watch:
        for _ in range(STEPS):
            step()
    return watch.work, timings


def print_profile(case: Case) -> None:
    """One line a kind of operation."""
    found, timings = profile(case)
    step = timings[OURS].median
    rates = {name: 2 * SIDE**3 / timings[name].median for name in timings if name != OURS}
    title = (
        f"A step of LipConvNet-{case.depth}, width {case.width}, batch {case.batch}, "
        f"{torch.get_num_threads()} threads: {step:.3f} s"
    )
    columns = ("of the step", "ms a step", "calls", "GFLOP/s", f"of MatMul {SIDE}")
    table = Table("operations", "result", *columns, title=title)
    for (kind, dtype), work in sorted(found.items(), key=lambda item: -item[1].seconds):
        seconds = work.seconds / STEPS
        cells = (f"{seconds / step:.0%}", f"{1e3 * seconds:.1f}", f"{work.calls / STEPS:.0f}")
        speed = work.flops / work.seconds
        products = (f"{speed / 1e9:.0f}", f"{speed / rates[dtype]:.0%}") if work.flops else ()
        if seconds > 0.01 * step:
            table.add_row(kind, dtype, *cells, *products)
    Console(width=110).print(table)
    all_seconds = sum(work.seconds for work in found.values()) / STEPS
    Console(width=110).print(
        f"All operations: {1e3 * all_seconds:.0f} ms a step, timed one by one. MatMul {SIDE}: "
        + ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    )


def print_compiled(case: Case) -> None:
    """What compiling saves of a step, and what it takes."""
    steps = {name: step_of(name, case) for name in (OURS, COMPILED)}
    first = {name: seconds_of(step) for name, step in steps.items()}
    timings, skipped = interleave(steps, SECONDS, longest=LONGEST)
    if skipped:
        raise SystemExit(f"not timed: {skipped}")
    ratio = timings[OURS].over(timings[COMPILED])
    Console(width=110).print(
        f"Compiled: {timings[COMPILED].median:.3f} s a step, {ratio:.2f} times as fast as the "
        f"{timings[OURS].median:.3f} s without; the first step took {first[COMPILED]:.0f} s.\n"
    )


def main() -> None:
    """Print the profile of each network of the benchmark, with 128 images a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    case = parser.parse_args().case
    if case is not None:
        print_profile(CASES[case])
        print_compiled(CASES[case])
        return
    print(describe_machine(), flush=True)
    for number in range(len(CASES)):
        # Nothing that was compiled before is at hand.
        with TemporaryDirectory() as cache:
            subprocess.run(
                [sys.executable, __file__, "--case", str(number)],
                env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache},
                check=True,
            )


if __name__ == "__main__":
    main()
