"""Certificates that are false: told in red, and both inputs kept for whoever looks closer."""

import io
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lipdeploy.decimals import lower, upper
from lipdeploy.files import make_writable_folder, write_atomically, writing
from lipdeploy.report.console import print_error

if TYPE_CHECKING:
    from lipdeploy.predictor import Predictor

Pixels = NDArray[np.float32]
Command = Callable[[Path, Path], str]
"""What to type to look at a pair of files again."""


@dataclass(frozen=True, eq=False)
class BrokenPair:
    """Two inputs whose answers contradict the certificate of the first.

    Attributes:
        name: of the image that was certified.
        true_class: what it is.
        certified_class: what it was answered, rightly or wrongly, and what is promised.
        radius_255: certified, l2 in units of 1/255.
        original: the certified input, shape (3, n, n), 0 ... 255.
        other: the input that got another class, of the same kind.
        other_class: that class.
        distance_255: upper bound of the l2 distance of the two, in units of 1/255.
        how: what made the other one, for people.
        made_by: the same as fields of the record.
    """

    name: str
    true_class: str
    certified_class: str
    radius_255: float
    original: Pixels
    other: Pixels
    other_class: str
    distance_255: float
    how: str
    made_by: dict[str, Any]


class BrokenPairs:
    """Tells of pairs and keeps them; never over those that the folder has already.

    Args:
        folder: where pairs go; made for the first one.
        predictor: whose certificates they contradict.
        command: what to type to look at a pair again.

    Attributes:
        records: a pair each: the names of the files and what they show.
    """

    def __init__(self, folder: Path, predictor: "Predictor", command: Command) -> None:
        self.records: list[dict[str, Any]] = []
        self._folder, self._predictor, self._command = folder, predictor, command
        self._numbers = count(1)

    def tell(self, pair: BrokenPair) -> None:
        """Say in red that a certificate is false, and keep both inputs.

        Raises:
            OutputError: if they cannot be written.
        """
        record_path = self._free_record()
        stem = record_path.with_suffix("")
        first, second = Path(f"{stem}-original.npy"), Path(f"{stem}-adversarial.npy")
        for path, pixels in ((first, pair.original), (second, pair.other)):
            _write_pixels(pixels, path)
        print_error(
            f"SOUNDNESS FAILURE: {pair.name}: certified {pair.certified_class} within "
            f"{lower(pair.radius_255, 2)}/255, but {pair.how} made it {pair.other_class} at "
            f"{upper(pair.distance_255, 2)}/255; use this model no more; to see it again type: "
            f"{self._command(first, second)}"
        )
        record = self._record(pair) | {"original": str(first), "adversarial": str(second)}
        write_atomically(json.dumps(record, indent=1).encode(), record_path)
        self.records.append(record)

    def _free_record(self) -> Path:
        """The first name that no file has; made empty, so that no other process takes it."""
        make_writable_folder(self._folder)
        while True:
            path = self._folder / f"broken-{next(self._numbers):04d}.json"
            with writing(path), suppress(FileExistsError):
                path.touch(exist_ok=False)
                return path

    def _record(self, pair: BrokenPair) -> dict[str, Any]:
        predictor = self._predictor
        return {
            "path": pair.name,
            "class": pair.true_class,
            "certified_class": pair.certified_class,
            "adversarial_class": pair.other_class,
            "radius_255": pair.radius_255,
            "distance_255": pair.distance_255,
            **pair.made_by,
            "guarantee": predictor.guarantee,
            "model": predictor.model,
            "sha256": predictor.sha256,
            "engine": predictor.runtime.description,
        }


def _write_pixels(pixels: Pixels, path: Path) -> None:
    """The exact input as an array, and a picture of it, rounded to 8 bits, for the eye."""
    from PIL import Image

    stream = io.BytesIO()
    np.save(stream, pixels, allow_pickle=False)
    write_atomically(stream.getvalue(), path)
    picture, stream = np.rint(pixels.transpose(1, 2, 0)).astype(np.uint8), io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    write_atomically(stream.getvalue(), path.with_suffix(".png"))
