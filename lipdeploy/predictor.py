"""Images in, classes with a guaranteed radius out."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from PIL import Image

from lipdeploy.artifact import REFERENCE, Engine
from lipdeploy.certificate import (
    GUARANTEES,
    Answers,
    Certifier,
    Guarantee,
    assumptions,
    file_radius,
    integer_budget,
    scale_radius,
)
from lipdeploy.choices import check_choice
from lipdeploy.errors import ImageError, ModelError, UsageError
from lipdeploy.exporters.onnx_file import read_onnx
from lipdeploy.images import PREPROCESSING, ImageSource, NetworkInput, network_input
from lipdeploy.locate import find_model
from lipdeploy.mlp_head import MlpHead
from lipdeploy.rounding import ARITHMETICS
from lipdeploy.runtimes import Array, Runtime
from lipdeploy.runtimes.numpy import NumpyRuntime
from lipdeploy.runtimes.onnx import DEVICES, Device, OnnxRuntime

RuntimeChoice = Literal["onnxruntime", "numpy"]
NOT_CERTIFIED = "the class does not lead all others by more than the numerical error"
NO_ORDER = (
    "here the engine adds in different orders for a batch of {}, other than its bounds assume; use "
    "--guarantee network, or export with --accumulation blocked"
)
VALUES_AT_ONCE = 1 << 26
"""Most numbers of a batch in one place of the network: half a gigabyte in float64."""
RUNTIMES: tuple[RuntimeChoice, ...] = ("onnxruntime", "numpy")


@dataclass(frozen=True)
class Certificate:
    """A guaranteed radius and what it rests on.

    Attributes:
        radius: l2 in the space of the network's input, pixels in [0, 1]; 0 where nothing is
            certified.
        radius_255: the same in units of 1/255.
        radius_file: l2 in the pixels of the decoded file, in [0, 1]; None where the file's pixels
            are not linear in the network's input (alpha, CMYK).
        integer_budget: largest sum of squared differences of 8-bit pixels of the file that is
            covered; -1 for none, None where there is no file radius.
        guarantee: the statement, see `lipdeploy.certificate`.
        assumptions: what the proof assumes.
        reason: why the radius is 0, else None.
        radii_255: radius_255 of each statement that was computed, by name; others than the one
            that was asked for only where the predictor compares.
    """

    radius: float
    radius_255: float
    radius_file: float | None
    integer_budget: int | None
    guarantee: str
    assumptions: tuple[str, ...]
    reason: str | None
    radii_255: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        path: where the image came from, or its position in the call.
        label: class name.
        class_index: position of the class.
        logits: as the engine returned them.
        certificate: None where none was asked for.
    """

    path: str
    label: str
    class_index: int
    logits: tuple[float, ...]
    certificate: Certificate | None

    @property
    def radius(self) -> float:
        """The certified radius, l2 in [0, 1] pixels of the network's input; 0 without one."""
        return self.certificate.radius if self.certificate else 0.0


@dataclass(frozen=True)
class Failure:
    """An image that could not be read.

    Attributes:
        path: where it came from.
        error: why.
    """

    path: str
    error: str


class Predictor:
    """Classifies images with an engine file and certifies the answers.

    Args:
        model: path of an engine, as written by `lipdeploy export`, or an engine in memory; None for
            the one that `lipdeploy predict` would take (see `lipdeploy.locate.find_model`).
        certify: whether to compute certificates.
        guarantee: which statement, see `lipdeploy.certificate`; None for "program" where the
            engine's arithmetic has it, else "network".
        tight: take longer to prove larger radii, where the head has a way.
        compare: compute every statement that the engine has bounds for, too.
        device: "auto", "cpu" or "cuda".
        runtime: "onnxruntime", or "numpy" for the float64 reference.
        batch_size: images a batch; fewer where they become very large on the way.

    Attributes:
        engine_seconds: time spent in the engine so far.
        certify_seconds: time spent on certificates so far.

    Raises:
        ModelError: if the file is no engine of lipdeploy, or damaged.
        EngineError: if it cannot run on the device.
        UsageError: if an argument is none of its values.
    """

    def __init__(
        self,
        model: str | Path | Engine | None = None,
        *,
        certify: bool = True,
        guarantee: Guarantee | None = None,
        tight: bool = False,
        compare: bool = False,
        device: Device = "auto",
        runtime: RuntimeChoice = "onnxruntime",
        batch_size: int = 64,
    ) -> None:
        self.certify = certify
        _check_arguments(guarantee, device, runtime, batch_size)
        if not isinstance(model, Engine):
            model = _read_engine(find_model(None)[0] if model is None else Path(model))
        self.model, self.network, self.manifest = model.name, model.network, model.manifest
        self.sha256 = model.sha256
        self.batch_size = max(1, min(batch_size, VALUES_AT_ONCE // self.network.largest_values))
        self.runtime: Runtime = (
            NumpyRuntime(self.network)
            if runtime == "numpy"
            else OnnxRuntime(model.prepared, device)
        )
        has_program = ARITHMETICS[self.runtime.arithmetic].has_program
        has_program = has_program and self.rounding in self.manifest.errors
        self.guarantee: Guarantee = guarantee or ("program" if has_program else "network")
        if self.guarantee == "program" and not has_program:
            raise UsageError(
                f"--guarantee program: the engine has no bounds for {self.rounding}; use "
                "--guarantee network, or export the model again"
            )
        self._engine, self._order_kept = model, dict[int, bool]()
        self._certifier = Certifier(self.network, self.manifest, tight)
        self._compare = compare
        self.engine_seconds = self.certify_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the engine."""
        self.__dict__.pop("runtime", None)

    @property
    def description(self) -> str:
        """Model, hash of its content, engine, device: what a result was made with."""
        return f"{self.model}, sha256 {self.sha256}, {self.runtime.description}"

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the certificates assume."""
        is_mlp = isinstance(self.network.head, MlpHead)
        return assumptions(self.guarantee, self.rounding, is_mlp=is_mlp)

    @property
    def tight_is_exact(self) -> bool:
        """Whether tight certificates were asked for where there is nothing to gain."""
        return self._certifier.tight and not isinstance(self.network.head, MlpHead)

    @property
    def rounding(self) -> str:
        """Name of the error bounds of the runtime: arithmetic and order of sums."""
        if self.runtime.arithmetic == REFERENCE.arithmetic.name:
            return REFERENCE.name
        return f"{self.runtime.arithmetic} {self.manifest.accumulation}"

    @property
    def statements(self) -> tuple[str, ...]:
        """Names of what is computed for each image; the one that was asked for is first."""
        if not self._compare:
            return (self.guarantee,)
        arithmetic = self.runtime.arithmetic
        others = [
            f"program, {name}"
            for name in self.manifest.errors
            if name.startswith(f"{arithmetic} ") and name != self.rounding
        ]
        own = ["program"] if self.rounding in self.manifest.errors else []
        return tuple(dict.fromkeys([self.guarantee, "network", *own, *others]))

    def _all_radii(self, answers: Answers) -> dict[str, list[float]]:
        """Radii of every statement, in units of the pixels."""
        radii: dict[str, list[float]] = {}
        for name in self.statements:
            # No certified flip is a consequence of *network*, at the same radius.
            proven = "network" if name == "no-certified-flip" else name
            if proven not in radii:
                radii[proven] = self._radii(proven, answers).tolist()
            radii[name] = radii[proven]
        return radii

    def _radii(self, statement: str, answers: Answers) -> Array:
        if not statement.startswith("program"):
            return self._certifier.network_radii(answers)
        rounding = statement.removeprefix("program, ")
        rounding = self.rounding if rounding == "program" else rounding
        if rounding.endswith("same-order") and not self._keeps_order(len(answers.labels)):
            return np.zeros(len(answers.labels))
        return self._certifier.program_radii(answers, self.manifest.errors[rounding])

    def _keeps_order(self, batch: int) -> bool:
        """Whether the permutation test passes on this machine at this batch size."""
        if batch not in self._order_kept:
            from lipdeploy.exporters.onnx_probe import keeps_order

            self._order_kept[batch] = isinstance(self.runtime, OnnxRuntime) and keeps_order(
                self.runtime, self._engine.prepared, batch
            )
        return self._order_kept[batch]

    def __call__(self, sources: Iterable[ImageSource] | ImageSource) -> Iterator[Prediction]:
        """Predict one by one.

        Args:
            sources: paths, encoded bytes, PIL images, or uint8 arrays of shape (height, width, 3);
                many of them, or a single one.

        Raises:
            ImageError: at the first image that cannot be read.
        """
        for result in self.attempt(sources):
            if isinstance(result, Failure):
                raise ImageError(f"{result.path}: {result.error}")
            yield result

    def attempt(
        self, sources: Iterable[ImageSource] | ImageSource
    ) -> Iterator[Prediction | Failure]:
        """Like calling, but an image that cannot be read gives a Failure and the others go on."""
        numbered = enumerate(_as_many(sources))
        while batch := list(islice(numbered, self.batch_size)):
            yield from self._batch(batch)

    def _batch(self, batch: list[tuple[int, ImageSource]]) -> Iterator[Prediction | Failure]:
        loaded = [self._load(index, source) for index, source in batch]
        inputs = [item for _, item in loaded if isinstance(item, NetworkInput)]
        answers = self._infer(inputs) if inputs else iter(())
        for name, item in loaded:
            if isinstance(item, str):
                yield Failure(name, item)
                continue
            class_index, logits, certificate = next(answers)
            if not np.all(np.isfinite(logits)):
                yield Failure(name, "the engine returned logits that are not finite")
                continue
            label = self.manifest.classes[class_index]
            yield Prediction(name, label, class_index, logits, certificate)

    def _load(self, index: int, source: ImageSource) -> tuple[str, NetworkInput | str]:
        name = str(source) if isinstance(source, str | Path) else f"#{index}"
        try:
            return name, network_input(source, self.network.image_size)
        except ImageError as error:
            return name, str(error)

    def _infer(
        self, inputs: list[NetworkInput]
    ) -> Iterator[tuple[int, tuple[float, ...], Certificate | None]]:
        pixels = np.stack([item.pixels for item in inputs])
        start = time.perf_counter()
        features, logits = self.runtime.run(pixels)
        self.engine_seconds += time.perf_counter() - start
        labels = np.argmax(logits, axis=1)
        answers = Answers(pixels.astype(np.float64), features, labels)
        start = time.perf_counter()
        radii = self._all_radii(answers) if self.certify else {}
        self.certify_seconds += time.perf_counter() - start
        for index, (item, row) in enumerate(zip(inputs, logits, strict=True)):
            own = {name: values[index] for name, values in radii.items()}
            certificate = self._certificate(own, item, len(inputs)) if own else None
            yield int(labels[index]), tuple(row.tolist()), certificate

    def _certificate(
        self, radii_255: dict[str, float], item: NetworkInput, batch: int
    ) -> Certificate:
        radius_255, on_file = radii_255[self.guarantee], None
        if item.resize_norm_upper is not None:
            on_file = file_radius(radius_255, item.error_upper, item.resize_norm_upper)
            on_file = scale_radius(on_file, 255)
        return Certificate(
            radius=scale_radius(radius_255, 255),
            radius_255=radius_255,
            radius_file=on_file,
            integer_budget=None if on_file is None else integer_budget(on_file),
            guarantee=self.guarantee,
            assumptions=self.assumptions,
            reason=None if radius_255 > 0 else self._reason(batch),
            radii_255=radii_255,
        )

    def _reason(self, batch: int) -> str:
        """Why a radius is 0."""
        if self.guarantee == "program" and not self._order_kept.get(batch, True):
            return NO_ORDER.format(batch)
        return NOT_CERTIFIED


def _as_many(sources: Iterable[ImageSource] | ImageSource) -> Iterable[ImageSource]:
    if isinstance(sources, str | Path | bytes | Image.Image | np.ndarray):
        return [sources]
    return sources


def _check_arguments(guarantee: str | None, device: str, runtime: str, batch_size: int) -> None:
    if guarantee is not None:
        check_choice("--guarantee", guarantee, GUARANTEES)
    check_choice("--device", device, DEVICES)
    check_choice("--runtime", runtime, RUNTIMES)
    if runtime == "numpy" and device == "cuda":
        raise UsageError("the numpy runtime has no GPU; use --runtime onnxruntime")
    if batch_size < 1:
        raise UsageError(f"--batch {batch_size}: must be at least 1")


def _read_engine(path: Path) -> Engine:
    if path.suffix == ".pt":
        model = path.with_name("model.pt") if path.name.startswith("checkpoint") else path
        raise ModelError(
            f"{path}: not an engine; run 'lipdeploy export {model}' and use the file that it writes"
        )
    engine = read_onnx(path)
    expected = {"size": engine.network.image_size, **PREPROCESSING}
    if engine.manifest.preprocessing != expected:
        raise ModelError(f"{path}: made for another preprocessing; export it again")
    return engine
