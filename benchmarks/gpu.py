"""The centre of the benchmark on a GPU: our engines with certificates beside PyTorch.

    PYTHONPATH=benchmarks python benchmarks/gpu.py

ONNX Runtime's CUDA provider in strict float32 (no TF32), inputs and outputs bound to memory of the
GPU, shapes fixed, the graph replayed as one CUDA graph. Ends with status 1 where no GPU is usable.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from inference.cases import (
    Built,
    Case,
    Measured,
    build,
    certificate_share,
    differences_of,
    functions_of,
    model_of,
)
from inference.engines import ACCUMULATIONS, CertifiedEngine
from inference.networks import ABOUT_WEIGHTS, pixels_of
from inference.opponents import DENSE, SERIES_6, SERIES_15, Opponent, fastest_of, torch_opponents
from inference.plan import shape
from inference.report import print_results
from inference.results import Results, describe_machine, notes_of, rows_of, skips_of
from inference.timing import MATMUL, STREAM, STREAM_BYTES, Machine, interleave, matmul
from numpy.typing import NDArray

from lipdeploy.artifact import Engine
from lipdeploy.errors import EngineError
from lipdeploy.exporters.onnx_file import served_bytes
from lipdeploy.report.console import print_error
from lipdeploy.runtimes import Array, Pixels

CASE = Case(
    "centre",
    shape(),
    batches=(1, 8, 64, 256),
    variants=tuple(ACCUMULATIONS),
    series=(SERIES_15, SERIES_6, DENSE),
    seconds=20,
)
SIDE = 8192
"""Of the product of matrices whose rate counts as the peak."""

STRICT = {"use_tf32": "0"}


def fixed_shapes(model: bytes, batch: int) -> bytes:
    """The same model for one batch size, as CUDA graphs need it."""
    proto = onnx.load_from_string(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    data: bytes = proto.SerializeToString()
    return data


def cuda_session(model: bytes) -> Any:  # noqa: ANN401
    """A session whose every node runs on the GPU, as one CUDA graph.

    Raises:
        EngineError: if there is no CUDA here, or it cannot run the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = ("CUDAExecutionProvider", STRICT | {"enable_cuda_graph": "1"})
    if provider[0] not in onnxruntime.get_available_providers():
        raise EngineError(
            "the installed ONNX Runtime has no CUDA, this benchmark needs it; on a machine with an "
            "NVIDIA GPU: pip uninstall onnxruntime, then pip install '.[gpu,train,plot]'"
        )
    try:
        return onnxruntime.InferenceSession(model, options, providers=[provider])
    # ONNX Runtime's exceptions share no base class.
    except Exception as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise EngineError(f"no usable GPU ({reason}); check nvidia-smi") from error


class CudaGraphRuntime:
    """A graph of an engine on the GPU for one batch size, its input and outputs bound once.

    Args:
        engine: whose graph it is.
        data: bytes of the graph, `Engine.prepared` or `served_bytes`.
        outputs: names of outputs that come back.
        batch: images a call.
    """

    arithmetic = "float32"
    runs_graph = True

    def __init__(self, engine: Engine, data: bytes, outputs: Sequence[str], batch: int) -> None:
        head, size = engine.network.head, engine.network.image_size
        self.description = f"onnxruntime {onnxruntime.__version__}, float32, CUDA graph"
        self._session = cuda_session(fixed_shapes(data, batch))
        self._binding = self._session.io_binding()
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._input = make([batch, 3, size, size], np.float32, "cuda", 0)
        self._binding.bind_ortvalue_input("pixels", self._input)
        shapes = {
            "features": [batch, head.features],
            "logits": [batch, head.classes],
            "radius": [batch],
        }
        self._outputs = [make(shapes[name], np.float32, "cuda", 0) for name in outputs]
        for name, value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def outputs(self, pixels: Pixels) -> list[NDArray[np.float32]]:
        """Map pixels (batch, 3, n, n), 0 ... 255, to the outputs that were asked for."""
        self._input.update_inplace(pixels)
        self._session.run_with_iobinding(self._binding)
        return [value.numpy() for value in self._outputs]

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        """Map pixels to features and logits."""
        features, logits = (value.astype(np.float64) for value in self.outputs(pixels))
        return features, logits


def on_gpu(one: CertifiedEngine, batch: int) -> CertifiedEngine:
    """The engine on the GPU, and its graph with the radius there, too."""
    engine = one.engine
    answers = CudaGraphRuntime(engine, engine.prepared, ("features", "logits"), batch)
    serving = CudaGraphRuntime(engine, served_bytes(engine), ("logits", "radius"), batch)
    return replace(one, runtime=answers, serve=lambda pixels: serving.outputs(pixels)[1])


def gpu_functions() -> dict[str, Callable[[], object]]:
    """What measures the GPU: a MatMul in strict float32, and reading its memory."""
    if not torch.cuda.is_available():
        raise EngineError("PyTorch has no CUDA here, the opponents need it; pip install torch")
    stream = torch.ones(STREAM_BYTES // 4, device="cuda")
    product = matmul("cuda", [("CUDAExecutionProvider", STRICT)], SIDE)
    return {MATMUL: product, STREAM: lambda: stream.sum().item()}


def measure(built: Built, model: Path, batch: int) -> Measured:
    """Check and time engines and opponents at one batch size, all on the GPU."""
    pixels = pixels_of(model, batch)
    engines = {name: on_gpu(engine, batch) for name, engine in built.engines.items()}
    built = replace(built, engines=engines)
    modules = built.series | built.others
    opponents: dict[str, Opponent] = {
        name: fastest_of(torch_opponents(module, "cuda"), pixels)
        for name, module in modules.items()
    } | {name: engine.opponent() for name, engine in engines.items()}
    differences = differences_of(built, opponents, pixels)
    functions = gpu_functions() | functions_of(built, opponents, pixels)
    timings, skipped = interleave(functions, CASE.seconds)
    machine = Machine.of(timings, SIDE)
    share = certificate_share(built, functions)
    return Measured(CASE, pixels, opponents, timings, machine, differences, share, skipped)


def main() -> int:
    """Print the table; the exit status."""
    results = Results(describe_machine(), notes=[ABOUT_WEIGHTS])
    # Off for PyTorch, too: all opponents in the same arithmetic.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with model_of(CASE) as model:
        for batch in CASE.batches:
            built = build(CASE, model, batch)
            results.skipped += skips_of(f"{CASE.label}, batch {batch}", built.skipped)
            try:
                measured = measure(built, model, batch)
            except EngineError as error:
                print_error(str(error))
                return 1
            results.rows += rows_of(measured, memory=False)
            results.notes += notes_of(measured)
            results.skipped += skips_of(f"batch {batch}", measured.skipped)
    print_results(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
