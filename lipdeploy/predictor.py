"""Images in, classes with a guaranteed radius out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from PIL import Image

from lipdeploy.artifact import Engine
from lipdeploy.certificate import (
    ASSUMPTIONS,
    GUARANTEES,
    MLP_ASSUMPTION,
    certify,
    file_radius,
    integer_budget,
    scale_radius,
)
from lipdeploy.choices import check_choice
from lipdeploy.errors import ImageError, ModelError, UsageError
from lipdeploy.exporters.onnx_file import read_onnx
from lipdeploy.heads import MlpHead
from lipdeploy.images import PREPROCESSING, ImageSource, NetworkInput, network_input
from lipdeploy.locate import find_model
from lipdeploy.runtimes import Runtime
from lipdeploy.runtimes.numpy import NumpyRuntime
from lipdeploy.runtimes.onnx import DEVICES, Device, OnnxRuntime

RuntimeChoice = Literal["onnxruntime", "numpy"]
NOT_CERTIFIED = "the class does not lead all others by more than the numerical error"
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
    """

    radius: float
    radius_255: float
    radius_file: float | None
    integer_budget: int | None
    guarantee: str
    assumptions: tuple[str, ...]
    reason: str | None


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
        guarantee: which statement; "network".
        device: "auto", "cpu" or "cuda".
        runtime: "onnxruntime", or "numpy" for the float64 reference.
        batch_size: images a batch; fewer where they become very large on the way.

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
        guarantee: str = "network",
        device: Device = "auto",
        runtime: RuntimeChoice = "onnxruntime",
        batch_size: int = 64,
    ) -> None:
        self.certify, self.guarantee = certify, guarantee
        _check_arguments(guarantee, device, runtime, batch_size)
        if not isinstance(model, Engine):
            model = _read_engine(find_model(None)[0] if model is None else Path(model))
        self.model, self.network, self.manifest = model.name, model.network, model.manifest
        self.sha256 = model.sha256
        self.batch_size = max(1, min(batch_size, VALUES_AT_ONCE // self.network.largest_values))
        self.runtime: Runtime = (
            NumpyRuntime(self.network) if runtime == "numpy" else OnnxRuntime(model.data, device)
        )

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
        extra = (MLP_ASSUMPTION,) if isinstance(self.network.head, MlpHead) else ()
        return ASSUMPTIONS + extra

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
        features, logits = self.runtime.run(pixels)
        labels = np.argmax(logits, axis=1)
        radii: list[float] | list[None] = [None] * len(inputs)
        if self.certify:
            exact = pixels.astype(np.float64)
            radii = certify(self.network, self.manifest, exact, features, labels).tolist()
        for item, row, label, radius in zip(inputs, logits, labels, radii, strict=True):
            certificate = None if radius is None else self._certificate(radius, item)
            yield int(label), tuple(row.tolist()), certificate

    def _certificate(self, radius_255: float, item: NetworkInput) -> Certificate:
        on_file = None
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
            reason=None if radius_255 > 0 else NOT_CERTIFIED,
        )


def _as_many(sources: Iterable[ImageSource] | ImageSource) -> Iterable[ImageSource]:
    if isinstance(sources, str | Path | bytes | Image.Image | np.ndarray):
        return [sources]
    return sources


def _check_arguments(guarantee: str, device: str, runtime: str, batch_size: int) -> None:
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
