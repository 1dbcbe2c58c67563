"""Where a training step spends its time, and what limits it: `make step-profile`.

Every operation is timed by itself, beside the machine's own rates in the same process: products
of matrices of side 1024, and reading and writing memory that no cache holds. Then the same step,
compiled.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from inference.results import describe_machine
from inference.timing import interleave, seconds_of, turn
from rich.console import Console
from rich.table import Table
from steps import COMPILED, OURS, WHOLE, Case, step_of
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

STEPS = 10
SECONDS = 20.0
SIDE, STREAM_NUMBERS = 1024, 1 << 26

PRODUCTS = "matrix products"
KINDS = {
    "copies, casts, joins": ("copy_", "_to_copy", "clone", "cat", "index", "index_put_", "stack"),
    "comparisons, sorting": ("ge", "gt", "lt", "where", "maximum", "minimum", "sort", "gather"),
    "vectors: norms of layers": ("mv", "addmv_", "linalg_vector_norm", "dot", "addmv"),
}
"""Names of operations; others are products where they have a formula for those, else arithmetic."""


@dataclass
class Share:
    """What operations of one kind took.

    Attributes:
        seconds: of all.
        calls: number of operations.
        flops: of products.
        moved: bytes of the operands and results.
    """

    seconds: float = 0.0
    calls: int = 0
    flops: int = 0
    moved: int = 0


@dataclass
class Watch(TorchDispatchMode):
    """Times every operation that runs under it.

    Attributes:
        shares: by kind and dtype.
    """

    shares: defaultdict[tuple[str, str], Share] = field(default_factory=lambda: defaultdict(Share))

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
        if func.is_view:
            return result
        name, packet = func.name().split("::")[1].split(".")[0], func.overloadpacket
        kind = next((kind for kind, names in KINDS.items() if name in names), "arithmetic")
        flops = 0
        if packet in flop_registry:
            kind = PRODUCTS
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
        share = self.shares[kind, dtype]
        share.seconds += seconds
        share.calls += 1
        share.flops += flops
        share.moved += sum(x.numel() * x.element_size() for x in tensors)
        return result


def rates() -> tuple[dict[str, float], float]:
    """Floating point operations a second in products by dtype, and bytes a second."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        matrix = torch.randn(SIDE, SIDE).to(dtype)
        found[str(dtype).removeprefix("torch.")] = 2 * SIDE**3 / turn(lambda m=matrix: m @ m)
    stream = torch.ones(STREAM_NUMBERS)
    return found, 2 * 4 * STREAM_NUMBERS / turn(stream.neg_)


def profile(case: Case) -> tuple[Mapping[tuple[str, str], Share], float]:
    """Operations of `STEPS` steps, and seconds of a step without anybody watching."""
    step = step_of(OURS, case)
    step()
    plain = turn(step)
    with Watch() as watch:
        for _ in range(STEPS):
            step()
    return watch.shares, plain


def print_profile(case: Case) -> None:
    """One line a kind of operation."""
    shares, plain = profile(case)
    of_products, of_memory = rates()
    title = (
        f"A step of LipConvNet-{case.depth}, width {case.width}, batch {case.batch}, "
        f"{torch.get_num_threads()} threads: {plain:.3f} s"
    )
    columns = ("share", "ms a step", "calls", "GFLOP/s", "of MatMul", "GB/s", "of memory")
    table = Table("", "", *columns, title=title)
    whole = sum(share.seconds for share in shares.values())
    for (kind, dtype), share in sorted(shares.items(), key=lambda item: -item[1].seconds):
        if share.seconds < 0.005 * whole:
            continue
        speed, traffic = share.flops / share.seconds, share.moved / share.seconds
        products = (f"{speed / 1e9:.0f}", f"{speed / of_products.get(dtype, torch.inf):.0%}")
        table.add_row(
            kind,
            dtype,
            f"{share.seconds / whole:.0%}",
            f"{1e3 * share.seconds / STEPS:.1f}",
            f"{share.calls / STEPS:.0f}",
            *(products if kind == PRODUCTS else ("", "")),
            f"{traffic / 1e9:.1f}",
            f"{traffic / of_memory:.0%}",
        )
    console = Console(width=110)
    console.print(table)
    console.print(
        "MatMul of side 1024: "
        + ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in of_products.items())
        + f"; memory, read and written: {of_memory / 1e9:.1f} GB/s. More than that is a cache's."
    )


def print_compiled(case: Case) -> None:
    """What compiling saves of a step, and what it takes."""
    steps = {name: step_of(name, case) for name in (OURS, COMPILED)}
    first = {name: seconds_of(step) for name, step in steps.items()}
    timings, _ = interleave(steps, SECONDS)
    ratio = timings[OURS].over(timings[COMPILED])
    Console(width=110).print(
        f"Compiled: {timings[COMPILED].median:.3f} s a step, {ratio:.2f} times as fast as the "
        f"{timings[OURS].median:.3f} s without; the first step took {first[COMPILED]:.0f} s."
    )


def main() -> None:
    """Print the profile of each network of the benchmark, with 128 images a step."""
    print(describe_machine())
    for case in WHOLE:
        if case.batch == 128:
            print_profile(case)
            print_compiled(case)


if __name__ == "__main__":
    main()
