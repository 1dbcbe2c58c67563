"""What an export did."""

import shlex
from fractions import Fraction
from typing import TYPE_CHECKING

from rich.table import Table

from lipdeploy.decimals import lower, upper
from lipdeploy.report.console import is_quiet, plain_table, print_hint, print_line, print_table

if TYPE_CHECKING:
    from lipdeploy.exporters.export import Exported
    from lipdeploy.exporters.planned import PlannedLayer
    from lipdeploy.exporters.precision import PrecisionCost


def export_summary(exported: "Exported") -> None:
    """Size, time, bound, parity, and what to type next."""
    manifest, parity = exported.manifest, exported.parity
    forms = [layer.form for layer in manifest.layers]
    counts = ", ".join(f"{forms.count(form)} {form}" for form in dict.fromkeys(forms))
    shown_bound = upper(255 * Fraction(manifest.lipschitz_upper), 6)
    total = sum(exported.seconds.values())
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in exported.seconds.items())
    size = exported.files[exported.path] / 1e6
    print_line(f"Exported {exported.path} ({size:.1f} MB) in {total:.1f} s ({times})")
    others = [f"{path.name} ({n / 1e6:.1f} MB)" for path, n in exported.files.items()][1:]
    if others:
        print_hint(f"  beside it  {', '.join(others)}: keep them together")
    print_hint(f"  layers     {len(forms)}: {counts}")
    print_hint(
        f"  bound      a pixel change of l2 norm 1 in [0, 1] moves the features by at most "
        f"{shown_bound} (pixels are scaled by {manifest.source['input_gain']:g} on the way "
        f"in); proof: {manifest.proof}"
    )
    print_hint(
        f"  check      {parity.inputs} inputs against float64 with {exported.checked}: features "
        f"differ by at most {100 * parity.share_of_bound:.2g} % of what is proven, logits by "
        f"{parity.logit_difference:.1e}, costs {parity.radius_cost:.1e}/255 of radius, "
        f"{parity.argmax_flips} argmax flips"
    )
    print_hint(f"  guarantee  {_guarantee(exported)}")
    if exported.plan and not is_quiet():
        before = f", before {exported.rewrites} rewrites the graph" if exported.rewrites else ""
        print_hint(f"  plan       for batches of {manifest.source['made_for_batch']}{before}:")
        print_table(_plan_table(exported.plan, list(exported.files.values())))
    _print_next(exported)


def _print_next(exported: "Exported") -> None:
    """What to type; an engine for a GPU is not what runs on a machine without one."""
    path, here = exported.path, exported.runs_here
    if here != path:
        print_hint(
            f"{path.name} needs an NVIDIA GPU to run, and CUDA finds none here: take it to a "
            f"machine that has one, with what lies beside it; {here.name} runs on this one."
        )
    print_hint("Next:", f"  lipdeploy predict IMAGE --certify --model {shlex.quote(str(here))}")


def _guarantee(exported: "Exported") -> str:
    """What the engine offers where it was exported for, and what that costs."""
    manifest = exported.manifest
    if exported.rewrites or manifest.guarantee == "network":
        reason = "libraries may sum in fewer bits on tensor cores"
        if exported.rewrites:
            reason = f"{exported.rewrites} rewrites the graph"
        return (
            f"network, {manifest.arithmetic}: each answer is compared with float64, because "
            f"{reason}"
        )
    return (
        f"{manifest.guarantee}, {manifest.arithmetic}, sums {manifest.accumulation} "
        f"({_sums(manifest.longest_sum)}): rounding of the features takes at most "
        f"{upper(exported.program_cost, 2)}/255 of a radius on these inputs"
    )


def precision_note(cost: "PrecisionCost") -> list[str]:
    """What a lower precision costs and gains; what could not be measured is said to be so."""
    ran = f"{cost.ran}, which imitates it" if cost.is_imitated else cost.ran
    return [
        f"{cost.precision} instead of float32, on {ran}:",
        f"  radius  {_radius_cost(cost)}",
        f"  speed   {_speed_gain(cost)}",
    ]


def _radius_cost(cost: "PrecisionCost") -> str:
    if cost.radius_255 is None:
        most = upper(cost.at_most_255, 2)
        return (
            f"rounding of the features takes at most {most}/255, by the model of {cost.precision}; "
            f"not measured: {cost.reason}"
        )
    return (
        f"{lower(cost.radius_255, 2)}/255 on average instead of {lower(cost.float32_255, 2)}/255, "
        f"statement network, {cost.images} images"
    )


def _speed_gain(cost: "PrecisionCost") -> str:
    if cost.speed is None:
        return f"not measured: {cost.reason}"
    speed = cost.speed
    return (
        f"{speed.gain:.2f} times that of float32: {speed.lower:.0f} images a second instead of "
        f"{speed.float32:.0f}, batches of {speed.batch}"
    )


def _sums(longest: int | None) -> str:
    return "any number of terms" if longest is None else f"at most {longest} terms"


def _plan_table(plan: "tuple[PlannedLayer, ...]", file_bytes: list[int]) -> Table:
    """A line a layer, and their sum; bytes of all files in the last one."""
    amounts = (">MMACs/image", ">stored MB", ">read MB", ">ms")
    bounds = (">norm at most", ">of rounding")
    table = plain_table("  layer", "grid", "channels", "form", *amounts, *bounds)
    for index, line in enumerate(plan):
        shape = line.shape
        table.add_row(
            f"  {index}",
            f"{shape.grid} x {shape.grid}",
            f"{shape.in_channels} -> {shape.out_channels}",
            str(line.choice),
            *_amounts(line.macs, line.parameter_bytes, line.engine_bytes, line.seconds),
            upper(line.norm_upper, 9),
            f"{100 * line.error_share:.0f} %",
        )
    names = ("macs", "parameter_bytes", "engine_bytes", "seconds")
    totals = [sum(getattr(line, name) for line in plan) for name in names]
    name = "file" if len(file_bytes) == 1 else "files"
    size = f"{name} {sum(file_bytes) / 1e6:.1f} MB"
    table.add_row("  all", "", "", size, *_amounts(*totals), "", "")
    return table


def _amounts(macs: int, stored: int, read: int, seconds: float) -> list[str]:
    return [f"{macs / 1e6:.2f}", f"{stored / 1e6:.2f}", f"{read / 1e6:.2f}", f"{1e3 * seconds:.2f}"]
