"""From model.pt to a checked engine file."""

import difflib
import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from lipdeploy.artifact import Manifest, make_manifest
from lipdeploy.errors import UsageError
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.onnx import write_onnx
from lipdeploy.exporters.parity import Parity, compare, probe_inputs
from lipdeploy.exporters.plan import FORM_CHOICES, FormChoice
from lipdeploy.images import PREPROCESSING
from lipdeploy.runtimes.onnx import OnnxRuntime, read_onnx
from lipdeploy.training.checkpoint import TrainedModel, load_model
from lipdeploy.training.lipconvnet import INPUT_GAIN

WeightsType = Literal["float16", "float32"]
WEIGHTS_TYPES: tuple[WeightsType, ...] = ("float16", "float32")
ENGINES = ("onnx",)
PLANNED = ("trt", "tensorrt", "engine", "openvino")
Stage = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        engine: "onnx".
        form: form of the linear layers, or "auto".
        weights: how operators are stored; biases, transforms and head are float32.

    Raises:
        UsageError: if an option is none of its values.
    """

    engine: str = "onnx"
    form: FormChoice = "auto"
    weights: WeightsType = "float16"

    def __post_init__(self) -> None:
        if self.engine in PLANNED:
            raise UsageError(f"--engine {self.engine} is not built yet; use --engine onnx")
        _check_choice("engine", self.engine, ENGINES)
        _check_choice("form", self.form, FORM_CHOICES)
        _check_choice("weights", self.weights, WEIGHTS_TYPES)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        expected = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
        raise UsageError(f"--{name} {value}: expected {expected}{hint}")


@dataclass(frozen=True)
class Exported:
    """A written engine.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        parity: how it compares with float64.
        seconds: time of each stage.
    """

    path: Path
    manifest: Manifest
    parity: Parity
    seconds: dict[str, float]


def export_model(
    model_path: Path, output: Path, options: ExportOptions, stage: Stage = lambda name: None
) -> Exported:
    """Freeze, prove, write, and check against the float64 reference; a failed check writes nothing.

    Raises:
        LipdeployError: if the model cannot be read, frozen, proven, written, or fails the check.
    """
    seconds: dict[str, float] = {}
    clock = _Stopwatch(seconds, stage)
    model = load_model(model_path)
    clock.start("freeze")
    network = freeze(model.network, options.form).stored_as(options.weights)
    clock.start("prove")
    manifest = make_manifest(
        network,
        model.card.classes,
        {"size": network.image_size, **PREPROCESSING},
        _source(model, model_path),
        _versions(),
    )
    partial = output.with_name(f".{output.name}.partial")
    try:
        clock.start("write")
        write_onnx(network, manifest, partial)
        clock.start("check")
        parity = _check_file(partial, model.examples.numpy())
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    clock.stop()
    return Exported(output, manifest, parity, seconds)


def _check_file(path: Path, examples: NDArray[Any]) -> Parity:
    network, _, data = read_onnx(path)
    pixels = probe_inputs(examples, network.image_size)
    return compare(network, OnnxRuntime(data, "cpu"), pixels)


def _source(model: TrainedModel, path: Path) -> dict[str, object]:
    card = asdict(model.card)
    kept = {key: card[key] for key in ("dataset", "command", "epochs")}
    return {
        **kept,
        "input_gain": INPUT_GAIN,
        "architecture": asdict(model.network.architecture),
        "trained_with": card["versions"],
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("lipdeploy", "numpy", "onnx", "onnxruntime")}


class _Stopwatch:
    """Names and times the stages, one after the other."""

    def __init__(self, seconds: dict[str, float], announce: Stage) -> None:
        self._seconds, self._announce = seconds, announce
        self._name, self._since = "load", time.perf_counter()
        announce(self._name)

    def start(self, name: str) -> None:
        """End the running stage, begin the next."""
        self.stop()
        self._name, self._since = name, time.perf_counter()
        self._announce(name)

    def stop(self) -> None:
        """End the running stage."""
        self._seconds[self._name] = time.perf_counter() - self._since
