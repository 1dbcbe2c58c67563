"""What an export did."""

from fractions import Fraction
from typing import TYPE_CHECKING

from lipdeploy.decimals import upper
from lipdeploy.report.console import print_detail, print_hint, print_line

if TYPE_CHECKING:
    from lipdeploy.exporters.export import Exported


def export_summary(exported: "Exported") -> None:
    """Size, time, bound, parity, and what to type next."""
    manifest, parity = exported.manifest, exported.parity
    forms = [layer.form for layer in manifest.layers]
    counts = ", ".join(f"{forms.count(form)} {form}" for form in dict.fromkeys(forms))
    shown_bound = upper(255 * Fraction(manifest.lipschitz_upper), 6)
    total = sum(exported.seconds.values())
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in exported.seconds.items())
    size = exported.path.stat().st_size / 1e6
    print_line(f"Exported {exported.path} ({size:.1f} MB) in {total:.1f} s ({times})")
    print_hint(f"  layers     {len(forms)}: {counts}")
    print_hint(
        f"  bound      a pixel change of l2 norm 1 in [0, 1] moves the features by at most "
        f"{shown_bound} (pixels are scaled by {manifest.source['input_gain']:g} on the way "
        f"in); proof: {manifest.proof}"
    )
    print_hint(
        f"  check      {parity.inputs} inputs against float64: largest logit difference "
        f"{parity.logit_difference:.1e}, costs {parity.radius_cost:.1e}/255 of radius, "
        f"{parity.argmax_flips} argmax flips"
    )
    print_hint(
        f"  guarantee  {manifest.guarantee}, {manifest.arithmetic}, sums {manifest.accumulation}: "
        f"rounding of the features takes at most {upper(exported.program_cost, 2)}/255 of a radius "
        "on these inputs"
    )
    for index, layer in enumerate(manifest.layers):
        norm = upper(layer.norm_upper, 9)
        print_detail(f"  layer {index:3d}  {layer.form:9s}  norm at most {norm}")
    print_hint("Next:", f"  lipdeploy predict IMAGE --certify --model {exported.path}")
