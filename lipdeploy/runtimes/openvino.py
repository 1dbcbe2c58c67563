"""Running an engine with OpenVINO on the CPU, in float32."""

from typing import Any

import numpy as np

from lipdeploy.errors import EngineError
from lipdeploy.runtimes import Array, Hint, Pixels


class OpenVinoRuntime:
    """An OpenVINO model on the CPU.

    Its compiler rewrites the graph as it likes, so nothing is assumed of its order of operations:
    the statement *program* is not offered, and *network* compares every answer with float64.

    Args:
        data: bytes of an ONNX model.
        hint: "latency" gives all cores to one batch, "throughput" cuts a batch into as many pieces
            as OpenVINO likes to run at once.

    Raises:
        EngineError: if OpenVINO is missing, cannot load the model, or does not compute in float32.
    """

    arithmetic = "float32"
    runs_graph = False

    def __init__(self, data: bytes, hint: Hint = "latency") -> None:
        try:
            import openvino
            import openvino.properties
        except ImportError as error:
            raise EngineError(
                "OpenVINO is not installed; pip install 'lipdeploy[openvino]', or use --runtime "
                "onnxruntime"
            ) from error
        self._library: Any = openvino
        try:
            self._compiled = self._compile(data, hint)
        # OpenVINO raises RuntimeError and others for whatever its readers find.
        except Exception as error:
            reason = str(error).strip().split("\n", maxsplit=1)[0]
            raise EngineError(f"OpenVINO cannot load the engine ({reason:.200})") from error
        self._pieces = 1
        if hint == "throughput":
            wanted = openvino.properties.optimal_number_of_infer_requests
            self._pieces = int(self._compiled.get_property(wanted))
        self._requests = [self._compiled.create_infer_request() for _ in range(self._pieces)]
        version = openvino.__version__.split("-", maxsplit=1)[0]
        self.description = f"openvino {version}, float32, cpu, {hint}"

    def _compile(self, data: bytes, hint: Hint) -> Any:  # noqa: ANN401
        import openvino.properties.hint as hints

        core = self._library.Core()
        read = core.read_model(data)
        modes = hints.PerformanceMode
        # On some CPUs bfloat16 is what it would choose.
        config = {
            hints.inference_precision: self._library.Type.f32,
            hints.execution_mode: hints.ExecutionMode.ACCURACY,
            hints.performance_mode: modes.LATENCY if hint == "latency" else modes.THROUGHPUT,
        }
        compiled = core.compile_model(read, "CPU", config)
        if compiled.get_property(hints.inference_precision) != self._library.Type.f32:
            raise EngineError("it does not keep to float32")
        return compiled

    def run(self, pixels: Pixels) -> tuple[Array, Array]:
        """Map pixels (batch, 3, n, n), 0 ... 255, to features and logits."""
        inputs = np.ascontiguousarray(pixels, dtype=np.float32)
        parts = np.array_split(inputs, min(self._pieces, len(inputs)))
        running = list(zip(self._requests, parts, strict=False))
        try:
            for request, part in running:
                request.start_async({"pixels": part})
            answers = [_outputs(request) for request, _ in running]
        # As above.
        except Exception as error:
            reason = str(error).strip().split("\n", maxsplit=1)[0]
            raise EngineError(
                f"the engine failed ({reason:.200}); try a smaller --batch"
            ) from error
        features, logits = (np.concatenate(values) for values in zip(*answers, strict=True))
        return features, logits


def _outputs(request: Any) -> tuple[Array, Array]:  # noqa: ANN401
    """What a request computed, copied: its own memory is written again by the next one."""
    request.wait()
    features, logits = (
        request.get_tensor(name).data.astype(np.float64) for name in ("features", "logits")
    )
    return features, logits
