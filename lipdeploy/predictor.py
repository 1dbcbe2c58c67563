"""Images in, classes with a guaranteed radius out."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from lipdeploy.artifact import Engine
from lipdeploy.canary import check_canary
from lipdeploy.certificate import GUARANTEES, Answers, Guarantee
from lipdeploy.certification import BatchCertifier
from lipdeploy.choices import Device, check_choice
from lipdeploy.errors import ImageError, ModelError, UsageError
from lipdeploy.exporters.engine_file import read_engine
from lipdeploy.images import (
    PREPROCESSING,
    ImageSource,
    NetworkInput,
    StoredImage,
    name_of,
    network_input,
)
from lipdeploy.locate import find_model
from lipdeploy.pipeline import Pipeline
from lipdeploy.prediction import Certificate, Failure, Prediction
from lipdeploy.runtimes import Array, Runtime
from lipdeploy.runtimes.choice import RuntimeChoice, check_runtime, open_runtime
from lipdeploy.timing import StageTimes

VALUES_AT_ONCE = 1 << 26
"""Most numbers of a batch in one place of the network: half a gigabyte in float64."""
DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode: one a core, beside those of the engine, which the system shares out; on two
cores one or three were no faster. More than eight would be ahead of any engine."""


@dataclass(frozen=True)
class _Loaded:
    """An image that was read: where it came from, what the network gets, or why it cannot."""

    name: str
    content: NetworkInput | str


@dataclass(frozen=True)
class _Answered:
    """A batch that went through the engine.

    Attributes:
        images: all of the batch.
        inputs: of those that could be read, in order.
        answers: for these; None where there are none.
        logits: for these, shape (len(inputs), K).
    """

    images: list[_Loaded]
    inputs: list[NetworkInput]
    answers: Answers | None
    logits: Array


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
        runtime: "auto" for the one that the engine was exported for; others see
            `lipdeploy.runtimes.choice`; "numpy" is the float64 reference.
        batch_size: images a batch; fewer where they become very large on the way.

    Attributes:
        times: wall time spent so far in the stages "decode" (sum over the threads), "engine" and
            "certificate"; they run beside each other.
        size: bytes of the engine file.

    Raises:
        ModelError: if the file is no engine of lipdeploy, or damaged.
        EngineError: if it cannot run on the device, or, where answers are to be certified, computes
            in another arithmetic than its bounds are for.
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
        runtime: RuntimeChoice = "auto",
        batch_size: int = 64,
    ) -> None:
        self.certify = certify
        check_arguments(guarantee, device, runtime, batch_size)
        if not isinstance(model, Engine):
            model = _read_engine(find_model(None)[0] if model is None else Path(model))
        self.model, self.network, self.manifest = model.name, model.network, model.manifest
        self.sha256, self.size = model.sha256, model.size
        self._format = "onnx" if model.built is None else model.built.record.kind
        self.batch_size = max(1, min(batch_size, VALUES_AT_ONCE // self.network.largest_values))
        self.runtime: Runtime = open_runtime(model, runtime, device)
        self._certifier = BatchCertifier(
            model, self.runtime, guarantee, tight=tight, compare=compare
        )
        if certify:
            check_canary(model, self.runtime)
        self.times = StageTimes()

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
        """What a result was made with (model, hash of its content, engine, device)."""
        return f"{self.model}, sha256 {self.sha256}, {self.runtime.description}"

    @property
    def format(self) -> str:
        """Kind of the engine file, "onnx", "openvino" or "tensorrt"."""
        return self._format

    @property
    def guarantee(self) -> Guarantee:
        """The statement that is certified."""
        return self._certifier.guarantee

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the certificates assume."""
        return self._certifier.assumptions

    def assumptions_of(self, statement: str) -> tuple[str, ...]:
        """What one of `statements` assumes."""
        return self._certifier.assumptions_of(statement)

    @property
    def tight_is_exact(self) -> bool:
        """Whether tight certificates were asked for where there is nothing to gain."""
        return self._certifier.tight_is_exact

    @property
    def rounding(self) -> str:
        """Name of the error bounds of the runtime (arithmetic and order of sums)."""
        return self._certifier.rounding

    @property
    def statements(self) -> tuple[str, ...]:
        """Names of what is computed for each image; the one that was asked for is first."""
        return self._certifier.statements

    @property
    def engine_seconds(self) -> float:
        """Time spent in the engine so far."""
        return self.times["engine"]

    @property
    def certify_seconds(self) -> float:
        """Time spent on certificates so far."""
        return self.times["certificate"]

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
        """Like calling, but an image that cannot be read gives a Failure and the others go on.

        Sources are read by other threads, one at a time, at most two batches (or one, and an image
        for each thread that decodes) ahead of the batch whose results are handed out; they must not
        change once they are given.
        """
        with Pipeline() as pipeline:
            ahead = max(self.batch_size, DECODERS)
            numbered = enumerate(_as_many(sources))
            loaded = pipeline.map(self._load, numbered, ahead=ahead, threads=DECODERS)
            batches = iter(lambda: list(islice(loaded, self.batch_size)), [])
            for batch in pipeline.map(self._infer, batches, ahead=1):
                yield from self._predictions(batch)

    def answer_batch(self, inputs: Sequence[NetworkInput]) -> list[Prediction | Failure]:
        """Predict one batch of images that are decoded and resized, in this thread."""
        batch = [_Loaded(f"#{index}", item) for index, item in enumerate(inputs)]
        return list(self._predictions(self._infer(batch)))

    def _load(self, numbered: tuple[int, ImageSource]) -> _Loaded:
        index, source = numbered
        name = name_of(source) or f"#{index}"
        with self.times.measure("decode"):
            try:
                return _Loaded(name, network_input(source, self.network.image_size))
            except ImageError as error:
                return _Loaded(name, str(error))

    def _infer(self, images: list[_Loaded]) -> _Answered:
        contents = [image.content for image in images]
        inputs = [content for content in contents if isinstance(content, NetworkInput)]
        if not inputs:
            return _Answered(images, inputs, None, np.empty((0, len(self.manifest.classes))))
        pixels = np.stack([item.pixels for item in inputs])
        with self.times.measure("engine"):
            features, logits = self.runtime.run(pixels)
        answers = Answers(pixels.astype(np.float64), features, np.argmax(logits, axis=1))
        return _Answered(images, inputs, answers, logits)

    def _predictions(self, batch: _Answered) -> Iterator[Prediction | Failure]:
        with self.times.measure("certificate"):
            certificates = iter(self._certificates(batch))
        rows = iter(batch.logits)
        for image in batch.images:
            if isinstance(image.content, str):
                yield Failure(image.name, image.content)
            else:
                yield self._prediction(image.name, next(rows), next(certificates))

    def _certificates(self, batch: _Answered) -> Sequence[Certificate | None]:
        if batch.answers is None or not self.certify:
            return [None] * len(batch.inputs)
        return self._certifier.certificates(batch.answers, batch.inputs, self.runtime)

    def _prediction(
        self, name: str, logits: Array, certificate: Certificate | None
    ) -> Prediction | Failure:
        if not np.all(np.isfinite(logits)):
            return Failure(name, "the engine returned logits that are not finite")
        index = int(np.argmax(logits))
        label = self.manifest.classes[index]
        return Prediction(name, label, index, tuple(logits.tolist()), certificate)


def _as_many(sources: Iterable[ImageSource] | ImageSource) -> Iterable[ImageSource]:
    if isinstance(sources, str | Path | bytes | StoredImage | Image.Image | np.ndarray):
        return [sources]
    return sources


def check_arguments(
    guarantee: str | None = None,
    device: str = "auto",
    runtime: str = "auto",
    batch_size: int = 1,
    **_: object,
) -> None:
    """Raise UsageError for arguments of `Predictor` that no model could have."""
    if guarantee is not None:
        check_choice("--guarantee", guarantee, GUARANTEES)
    check_runtime(runtime, device)
    if batch_size < 1:
        raise UsageError(f"--batch {batch_size}: must be at least 1")


def _read_engine(path: Path) -> Engine:
    if path.suffix == ".pt":
        model = path.with_name("model.pt") if path.name.startswith("checkpoint") else path
        raise ModelError(
            f"{path}: not an engine; run 'lipdeploy export {model}' and use the file that it writes"
        )
    engine = read_engine(path)
    expected = {"size": engine.network.image_size, **PREPROCESSING}
    if engine.manifest.preprocessing != expected:
        raise ModelError(f"{path}: made for another preprocessing; export it again")
    return engine
