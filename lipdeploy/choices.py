"""Values out of a short list, what to say when another one is given, and what a name is."""

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Literal, get_args

from lipdeploy.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)

MEANT = {
    "gpu": "cuda",
    "trt": "tensorrt",
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "jpeg": "jpeg_compression",
}
"""What people call something that has another name here."""


def suggestion(value: str, choices: Iterable[str]) -> str:
    """The nearest choice as a question, beginning with a semicolon; empty where none is near."""
    choices = list(choices)
    meant = MEANT.get(value.lower())
    near = [meant] if meant in choices else difflib.get_close_matches(value, choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` is one of `choices`; `name` is the option, as in "--head"."""
    if value not in choices:
        expected = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
        raise UsageError(f"{name} {value}: expected {expected}{suggestion(value, choices)}")


LONGEST_NAME = 1000
"""Characters that the name of a class may have."""


def _is_control(character: str) -> bool:
    """Whether it ends a line, steers a terminal, turns the direction of text, or is nothing."""
    turns = unicodedata.bidirectional(character) in {"LRE", "RLE", "LRO", "RLO", "PDF"}
    turns |= unicodedata.bidirectional(character) in {"LRI", "RLI", "FSI", "PDI"}
    return turns or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}


def check_class_names(names: Iterable[object]) -> None:
    """Raise ValueError unless all differ, none is empty or long, or has control characters."""
    names = list(names)
    for name in names:
        if isinstance(name, str) and len(name) > LONGEST_NAME:
            raise ValueError(
                f"{name[:40]!r}... is no name of a class: {len(name):,} characters, "
                f"limit {LONGEST_NAME:,}"
            )
        if not isinstance(name, str) or not name or any(map(_is_control, name)):
            raise ValueError(f"{name!r:.50} is no name of a class")
    if len(set(names)) < len(names):
        raise ValueError("two classes of one name")
