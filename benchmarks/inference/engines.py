"""Our engines: which ones, and running them with the certificate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.opponents import Logits, Opponent, Pixels
from lipdeploy.artifact import Engine
from lipdeploy.certificate import Answers, Certifier
from lipdeploy.exporters.onnx_file import served_bytes
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.exporters.stages import Stage, ignore_stage
from lipdeploy.exporters.trained import build_engine
from lipdeploy.runtimes import Runtime, hint_for
from lipdeploy.runtimes.choice import open_runtime
from lipdeploy.runtimes.onnx import OnnxRuntime

PLANNED = "engine, planned, same-order"
"""The engine of `lipdeploy export --accumulation same-order`, what all factors compare."""

DEFAULT = "engine, planned, blocked"
"""The engine of `lipdeploy export`."""

ACCUMULATIONS = {
    f"engine, planned, {order}": ExportOptions(weights="float32", accumulation=order)
    for order in ("blocked", "same-order", "any-order")
}
FORMS = {
    f"engine, all {form}": ExportOptions(weights="float32", form=form)
    for form in ("spectral", "fused", "tiled", "dense", "taylor")
}
VARIANTS = {
    **ACCUMULATIONS,
    **FORMS,
    "engine, planned, float16 file": ExportOptions(weights="float16"),
}
"""Every engine that is timed, by name."""

ENGINE, WITH = "ONNX Runtime", " + certificate"


@dataclass(frozen=True)
class CertifiedEngine:
    """An engine, opened, and what certifies its answers.

    Attributes:
        engine: the value that export writes.
        runtime: what `lipdeploy predict` runs it with.
        serve: from pixels to the output `radius`, computed by nodes of the graph, shape (batch,).
    """

    engine: Engine
    runtime: Runtime
    serve: Callable[[Pixels], NDArray[np.float32]]

    def logits(self, pixels: Pixels) -> Logits:
        """Logits alone, shape (batch, classes)."""
        return self.runtime.run(pixels)[1].astype(np.float32)

    def answers(self, pixels: Pixels) -> Answers:
        """What is certified: pixels, features and classes."""
        features, logits = self.runtime.run(pixels)
        return Answers(pixels.astype(np.float64), features, np.argmax(logits, axis=1))

    def radii(self, answers: Answers) -> NDArray[np.float64]:
        """Radii of the statement *program* as the host computes them, shape (batch,)."""
        manifest = self.engine.manifest
        return Certifier(self.engine.network, manifest).program_radii(
            answers, manifest.engine_errors
        )

    def opponent(self) -> Opponent:
        """The engine without certificates."""
        data = self.engine.prepared
        return Opponent(ENGINE, self.logits, len(data), partial(Path.write_bytes, data=data))

    def reference(self, pixels: Pixels) -> NDArray[np.float64]:
        """Logits of the frozen network in float64, shape (batch, classes)."""
        network = self.engine.network
        return network.head.logits(network.features(pixels.astype(np.float64)))


def open_engine(
    model: Path, variant: str, batch: int, stage: Stage = ignore_stage
) -> CertifiedEngine:
    """Build an engine of a model file for a batch size and open it on the CPU.

    Args:
        model: its file.
        variant: a name of `VARIANTS`.
        batch: images at a time.
        stage: told what is being done; what it raises ends the building.

    Raises:
        LipdeployError: if the network has no such form, or it does not fit.
    """
    engine = build_engine(model, replace(VARIANTS[variant], batch=batch), stage)
    runtime = open_runtime(engine, "onnxruntime", "cpu")
    serving = OnnxRuntime(served_bytes(engine), "cpu", hint=hint_for(batch))
    return CertifiedEngine(engine, runtime, partial(_radius, serving))


def _radius(runtime: OnnxRuntime, pixels: Pixels) -> NDArray[np.float32]:
    _, radius = runtime.outputs(["logits", "radius"], {"pixels": pixels})
    return radius


def relative_difference(logits: Logits, reference: NDArray[np.float64]) -> float:
    """Largest difference of a logit from float64, relative to the largest logit."""
    return float(np.abs(logits - reference).max() / np.abs(reference).max())
