"""What an evaluation has found so far, on disk, so that it can be killed and gone on with.

A file of JSON lines: what is evaluated, then a line an image, with a hash of its content. Whoever
goes on does so at the end of a batch, because the order in which an engine adds may depend on how
many images it gets at a time; so the final numbers are those of an undisturbed run. The first line
that is not what was written ends what is known.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lipdeploy.errors import OutputError
from lipdeploy.evaluation import Outcome
from lipdeploy.files import not_writable, writing
from lipdeploy.prediction import Certificate, Failure, Prediction
from lipdeploy.predictor import Predictor
from lipdeploy.versions import installed_version

FORMAT = "lipdeploy-evaluation 2"

PACKAGES = ("lipdeploy", "numpy", "pillow")
"""What decodes, resizes and certifies; `engine` of an identity has the version of the runtime."""

HASH_DIGITS = 16
"""Of each line, in hexadecimal: against bad bits and editors, not against whoever means it."""

COMMON = ("guarantee", "assumptions")
"""What all certificates of an evaluation share; it stands in the first line only."""

Identity = dict[str, Any]


def identity_of(predictor: Predictor, data_sha256: str, images: int, *, tight: bool) -> Identity:
    """All that the numbers of an evaluation depend on."""
    return {
        "format": FORMAT,
        "artifact sha256": predictor.sha256,
        "content sha256": predictor.manifest.sha256,
        "dataset sha256": data_sha256,
        "images": images,
        "engine": predictor.runtime.description,
        "guarantee": predictor.guarantee,
        "statements": list(predictor.statements),
        "assumptions": list(predictor.assumptions),
        "tight": tight,
        "batch": predictor.batch_size,
        **{f"version of {name}": installed_version(name) for name in PACKAGES},
    }


@dataclass
class Journal:
    """The outcomes in a file, in the order of the images.

    Attributes:
        path: of the file.
        identity: what is evaluated.
        kept: outcomes that were in the file when it was opened.
        batch: images a batch.
    """

    path: Path
    identity: Identity
    kept: int
    batch: int
    _stream: IO[bytes]
    _written: int = 0

    def outcomes(self) -> Iterator[Outcome]:
        """Those that were in the file, one at a time.

        Raises:
            OutputError: if somebody else has changed the file since it was opened.
        """
        with self.path.open("rb") as stream:
            for number, line in enumerate(islice(stream, 1, self.kept + 1), start=1):
                outcome = _outcome_in(line, number, self.identity)
                if outcome is None:
                    raise OutputError(
                        f"{self.path}: line {number + 1} was changed while it was read, expected "
                        "no other program to write there; type the same command again"
                    )
                yield outcome

    def keep(self, outcome: Outcome) -> Outcome:
        """The outcome itself, appended to the file; the system gets whole batches.

        Raises:
            OutputError: if it cannot be written.
        """
        self._written += 1
        record = _record(outcome)
        digest = _digest(self.kept + self._written, record)
        with writing(self.path):
            self._stream.write(_line({"outcome": record, "sha256": digest}))
            if self._written % self.batch == 0:
                self._stream.flush()
        return outcome


def _record(outcome: Outcome) -> dict[str, Any]:
    record = {"class": outcome.true_class} | asdict(outcome.result)
    if certificate := record.get("certificate"):
        for name in COMMON:
            del certificate[name]
    return record


def _outcome_in(line: bytes, number: int, identity: Identity) -> Outcome | None:
    """The outcome in a line, the `number`th after the first; None if it is not as written."""
    found = _parsed(line) or {}
    record = found.get("outcome")
    if not isinstance(record, dict) or found.get("sha256") != _digest(number, record):
        return None
    try:
        return _outcome(record, identity)
    except (KeyError, TypeError, ValueError):
        return None


def _outcome(record: dict[str, Any], identity: Identity) -> Outcome:
    """Undo `_record`; raises KeyError, TypeError or ValueError for what it has not made."""
    true_class = record.pop("class")
    if "error" in record:
        return Outcome(true_class, Failure(**record))
    certificate = record.pop("certificate")
    if certificate is not None:
        common = {name: identity[name] for name in COMMON}
        common["assumptions"] = tuple(common["assumptions"])
        certificate = Certificate(**certificate, **common)
    logits = tuple(record.pop("logits"))
    return Outcome(true_class, Prediction(**record, logits=logits, certificate=certificate))


def _digest(number: int, record: dict[str, Any]) -> str:
    """Short hash of a record and of its place, so that lost and swapped lines are found, too."""
    text = f"{number} {json.dumps(record)}"
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def _line(value: dict[str, Any]) -> bytes:
    # JSON writes the shortest decimals that are read as the same float.
    return json.dumps(value).encode() + b"\n"


@contextmanager
def open_journal(path: Path, identity: Identity) -> Iterator[Journal]:
    """Begin a file, or go on with one.

    Whole batches are kept; what a killed process left behind them is cut off.

    Raises:
        OutputError: if the file belongs to another evaluation, or cannot be written.
    """
    try:
        kept, length = _whole_batches(path, identity) if path.exists() else (0, 0)
        stream = path.open("r+b" if length else "wb")
    except OSError as error:
        raise not_writable(path, error) from error
    try:
        with writing(path):
            stream.truncate(length)
            stream.seek(0, os.SEEK_END)
            stream.write(b"" if length else _line(identity))
            stream.flush()
        yield Journal(path, identity, kept, identity["batch"], stream)
        with writing(path):
            stream.close()
    finally:
        with suppress(OSError):  # the first error counts
            stream.close()


def _whole_batches(path: Path, identity: Identity) -> tuple[int, int]:
    """Outcomes in whole batches, or in a whole evaluation, and the length of the file up to there.

    (0, 0) for a file whose first line was never finished.
    """
    with path.open("rb") as stream:
        first = stream.readline()
        if not first.endswith(b"\n"):
            return 0, 0
        _check_same(path, _parsed(first) or {}, identity)
        kept, length, position = 0, len(first), len(first)
        for count, line in enumerate(islice(stream, identity["images"]), start=1):
            if _outcome_in(line, count, identity) is None:
                break
            position += len(line)
            if count % identity["batch"] == 0 or count == identity["images"]:
                kept, length = count, position
    return kept, length


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None for what is not whole."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _check_same(path: Path, found: Identity, expected: Identity) -> None:
    for name, value in expected.items():
        if found.get(name) != value:
            raise OutputError(
                f"{path}: begun with another {name} ({_short(found.get(name))}, now "
                f"{_short(value)}); give --resume another folder, or delete this file"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
