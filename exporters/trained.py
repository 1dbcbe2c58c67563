"""A trained model, frozen, planned and proven: the part of an export that needs torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.arithmetic import ARITHMETICS
from lipdeploy.artifact import Engine, Manifest, make_manifest
from lipdeploy.canary import canary_difference
from lipdeploy.engine_error import distances_upper
from lipdeploy.exporters.freeze import freeze, layer_shapes
from lipdeploy.exporters.onnx import build_model
from lipdeploy.exporters.onnx_cost import CostModel
from lipdeploy.exporters.onnx_file import onnx_bytes, parse_onnx
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.exporters.parity import probe_inputs
from lipdeploy.exporters.plan import Choice, Cost, LayerShape, make_plan
from lipdeploy.exporters.planned import (
    PlannedLayer,
    longest_sums,
    planned_layers,
    within_loss,
)
from lipdeploy.exporters.stages import Stage, Stopwatch, ignore_stage
from lipdeploy.exporters.tune import Tuner
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.images import PREPROCESSING
from lipdeploy.runtimes.onnx import OnnxRuntime
from lipdeploy.training.checkpoint import TrainedModel, load_model
from lipdeploy.training.lipconvnet import INPUT_GAIN
from lipdeploy.versions import installed_version

MEASURED_HERE = ("float32", "float16")
"""Arithmetics that ONNX Runtime has, or imitates, on a CPU."""


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A trained network in the weights that are stored, not yet of any engine's arithmetic.

    Attributes:
        model: what was trained.
        path: its file.
        network: frozen, its weights stored as asked for.
        shapes: of its linear layers.
        plan: how each is evaluated.
        cost: what the plan was made with.
    """

    model: TrainedModel
    path: Path
    network: FrozenNetwork
    shapes: tuple[LayerShape, ...]
    plan: tuple[Choice, ...]
    cost: Cost

    @property
    def examples(self) -> NDArray[Any]:
        """Real images, shape (count, 3, n, n), 0 ... 255."""
        examples: NDArray[Any] = self.model.examples.numpy()
        return examples

    def certified(
        self, options: ExportOptions, clock: Stopwatch
    ) -> tuple[Engine, tuple[PlannedLayer, ...]]:
        """The engine in the arithmetic that was asked for, its bounds proven, and its plan."""
        network, plan, target = self.network, self.plan, options.target
        if options.has_lower_precision:
            network = network.rounded_to(ARITHMETICS[options.precision])
        clock.start("prove")
        pixels = probe_inputs(self.examples, network.image_size).astype(np.float64)
        distance = float(distances_upper(pixels, network.centre).max())
        if options.max_rounding_loss is not None:
            limit = 255 * options.max_rounding_loss
            if options.longest_sum is None:
                target = longest_sums(network, target, distance, limit)
            network, plan = within_loss(
                network, plan, self.shapes, options.form, target, distance, limit
            )
        manifest = make_manifest(
            network,
            self.model.card.classes,
            {"size": network.image_size, **PREPROCESSING},
            _source(self.model, options),
            _versions(),
            target.rounding,
        )
        lines = planned_layers(network, self.shapes, plan, target, distance, self.cost)
        clock.start("emit")
        manifest = manifest.with_canary(_canary(network, manifest), network.weights())
        # Read back as any reader would, so that what is checked is what the bytes say.
        return parse_onnx(onnx_bytes(network, manifest), f"{self.path}, frozen"), lines


def build_engine(model_path: Path, options: ExportOptions, stage: Stage = ignore_stage) -> Engine:
    """The engine that `lipdeploy.exporters.export.export_model` would write, in memory.

    Raises:
        LipdeployError: as that.
    """
    clock = Stopwatch(stage)
    return freeze_model(model_path, options, clock).certified(options, clock)[0]


def freeze_model(path: Path, options: ExportOptions, clock: Stopwatch) -> FrozenModel:
    """The network of a model file, planned and frozen.

    Raises:
        LipdeployError: if the file cannot be read, or its network not be frozen as asked for.
    """
    model = load_model(path)
    clock.start("tune" if options.tune else "plan")
    shapes = tuple(layer_shapes(model.network))
    cost = Tuner(announce=clock.announce) if options.tune else CostModel()
    plan = make_plan(shapes, options.form, options.target, cost)
    clock.start("exponentials")
    network = freeze(model.network, plan=plan, progress=clock.layers("freeze"))
    return FrozenModel(model, path, network.stored_as(options.weights), shapes, plan, cost)


def _canary(network: FrozenNetwork, manifest: Manifest) -> float:
    """What an honest runtime of this arithmetic differs by; 0 where none can be here."""
    if manifest.arithmetic not in MEASURED_HERE:
        return 0.0
    model = build_model(network, manifest, prepared=True, with_radius=False)
    data = bytes(model.SerializeToString())
    return canary_difference(network, OnnxRuntime(data, "cpu", manifest.arithmetic))


def _source(model: TrainedModel, options: ExportOptions) -> dict[str, object]:
    card = asdict(model.card)
    kept = {key: card[key] for key in ("dataset", "command", "epochs")}
    return {
        **kept,
        "input_gain": INPUT_GAIN,
        "architecture": asdict(model.network.architecture),
        "trained_with": card["versions"],
        "model_sha256": model.sha256,
        "made_for_batch": options.batch,
    }


def _versions() -> dict[str, str]:
    names = ("lipdeploy", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu")
    found = {name: installed_version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}
