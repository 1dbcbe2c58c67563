"""What is in a file, for people."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from lipdeploy.decimals import upper
from lipdeploy.report.console import cell, plain_table, print_line, print_table

SHOWN_APART = {"path", "kind", "bytes", "operations", "weights", "lipschitz_upper_unit"}
ENGINE_COLUMNS = ("operation", "form", "grid", "channels", "stored as", ">MB", ">norm at most")


def write_inspection(facts: dict[str, Any]) -> None:
    """The facts of an engine, a trained model or a checkpoint."""
    print_line(f"{facts['path']}: {facts['kind']}, {facts['bytes'] / 1e6:.2f} MB")
    for name, value in facts.items():
        if name not in SHOWN_APART and value is not None:
            print_line(f"  {name:16s} {_shown(name, value)}")
    if "operations" in facts:
        _write_operations(facts["operations"])


def _shown(name: str, value: Any) -> str:  # noqa: ANN401
    if name == "lipschitz_upper":
        return f"{upper(255 * Fraction(value), 6)} for pixels in [0, 1]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(key, part)}" for key, part in value.items())
    if isinstance(value, list):
        return f"{len(value)}: {', '.join(map(str, value))}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _form(operation: dict[str, Any]) -> Iterator[str]:
    """The form of a layer, and how its blocks are multiplied, as in a plan."""
    yield operation.get("form", "")
    parameters = operation.get("parameters", {})
    if parameters.get("copies", 1) > 1:
        yield f"x{parameters['copies']}"
    if "products" in parameters:
        yield parameters["products"]


def _write_operations(operations: list[dict[str, Any]]) -> None:
    table = plain_table(*ENGINE_COLUMNS)
    for operation in operations:
        channels = ""
        if "in_channels" in operation:
            channels = f"{operation['in_channels']} to {operation['out_channels']}"
        elif "features" in operation:
            channels = f"{operation['features']} to {operation['classes']}"
        norm = operation.get("norm_upper")
        table.add_row(
            cell(operation["kind"]),
            " ".join(_form(operation)),
            str(operation.get("grid", "")),
            channels,
            ", ".join(operation.get("stored_as", ())),
            f"{operation['bytes'] / 1e6:.3f}",
            "" if norm is None else upper(norm, 9),
        )
    print_table(table)
