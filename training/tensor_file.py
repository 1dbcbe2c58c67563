"""Files of tensors and plain values: written with checksums, read without trusting them.

The format is torch's: a zip file of uncompressed records, one of them a pickle. Each record carries
a CRC-32, which finds accidents; what is done against malice is said at each step below.
"""

import hashlib
import io
import pickletools
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipdeploy.errors import ModelError
from lipdeploy.files import write_atomically

FORMAT_VERSION = 1
INSTEAD = {
    "lipdeploy-checkpoint": "the model.pt beside it",
    "lipdeploy-model": "the checkpoint.pt beside it",
}
"""What to take where the file of the other kind is given."""

STORAGES = "Bool Byte Char Short Int Long Half BFloat16 Float Double"
CALLABLES = frozenset(
    ["collections OrderedDict", "torch._utils _rebuild_tensor_v2"]
    + [f"torch {name}Storage" for name in STORAGES.split()]
)
"""All that a pickle of tensors and plain values has to name."""


class DamagedFileError(ModelError):
    """A file is cut, has bits that changed, or was never one of tensors."""


@dataclass(frozen=True)
class TensorFile:
    """What was read, and from which bytes.

    Attributes:
        path: the file.
        content: what it holds.
        size: number of bytes.
        sha256: their hash.
    """

    path: Path
    content: dict[str, Any]
    size: int
    sha256: str


def write_tensors(content: dict[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write with torch.save; see `lipdeploy.files.write_atomically`.

    Equal content gives equal bytes, whether it was computed or read from another file.

    Raises:
        OutputError: if the file cannot be written.
    """
    stream = io.BytesIO()
    torch.save(_canonical(content), stream)
    write_atomically(stream.getvalue(), path, previous=previous)


def _canonical(value: Any) -> Any:  # noqa: ANN401
    """The same in plain containers, each string one object: a pickle shows which are the same."""
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, dict):
        return {_canonical(key): _canonical(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_canonical, value))
    return value


def read_tensors(path: Path, *formats: str) -> TensorFile:
    """Read a file of tensors and plain values that says it has one of these formats.

    Nothing in it is executed, and what it unpacks to is not much larger than the file.

    Raises:
        DamagedFileError: if it is damaged, or no file of tensors.
        ModelError: if it is missing, cannot be read, or is of another format or version.
    """
    expected = " or ".join(formats)
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {kind}; expected a {expected} file, as 'lipdeploy train' writes")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); try again") from error
    try:
        content = _unpack(data)
    except MemoryError:
        raise
    # The unpickler and the zip reader raise many kinds of errors; all mean the same here.
    except Exception as error:
        raise DamagedFileError(
            f"{path}: not a {expected} file as 'lipdeploy train' writes it, or a damaged one "
            f"({one_line(error)}); take it from a backup, or train again"
        ) from error
    found = content.get("format")
    if not isinstance(found, str) or len(found) > 40:
        found = "foreign"
    if found not in formats:
        hint = INSTEAD.get(found, "as 'lipdeploy train' writes")
        raise ModelError(f"{path}: a {found} file; expected a {expected} file, {hint}")
    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        shown = version if type(version) is int and abs(version) < 1000 else "unknown"
        raise ModelError(
            f"{path}: format version {shown}, this lipdeploy reads {FORMAT_VERSION}; use the "
            "version of lipdeploy that wrote it"
        )
    return TensorFile(path, content, len(data), hashlib.sha256(data).hexdigest())


def one_line(error: Exception) -> str:
    """The beginning of an error's message, for a message of our own."""
    return " ".join(str(error).split())[:100] or type(error).__name__


def _unpack(data: bytes) -> dict[str, Any]:
    records = _records(data)
    for name, record in records.items():
        if name.lower().endswith(".pkl"):
            _check_pickle(record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is in a file that is refused anyway
        loaded = torch.load(_archive(records), map_location="cpu", weights_only=True)
    plain = _Copy(len(data)).of(loaded)
    return plain if isinstance(plain, dict) else {}


def _records(data: bytes) -> dict[str, bytes]:
    """The records, their checksums checked; a compressed one could be a bomb, torch writes none."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed records")
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("records larger than the file")
        records = {entry.filename: archive.read(entry) for entry in entries}
        # torch looks records up without regard to case.
        if len({name.lower() for name in records}) < len(entries):
            raise ValueError("two records of one name")
    return records


def _archive(records: dict[str, bytes]) -> io.BytesIO:
    """The records as a new archive: torch must see what was checked, not what it would find.

    Readers of zip files differ in where they look for the directory.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    stream.seek(0)
    return stream


def _check_pickle(record: bytes) -> None:
    """Refuse a pickle that names anything but tensors.

    torch's own unpickler executes nothing of what it does not know, but knows things that are
    bombs, such as bytearray with a length.
    """
    for operation, argument, _ in pickletools.genops(record):
        if "GLOBAL" in operation.name and argument not in CALLABLES:
            raise ValueError(f"a pickle that names {argument}")


class _Copy:
    """Copies what was loaded into plain containers, as long as it is no larger than its file.

    A pickle can name one object many times, and so hold a tree far larger than itself; tensors can
    share one storage, or repeat one element (strides of zero).

    Args:
        limit: most values, and most bytes of tensors.
    """

    def __init__(self, limit: int) -> None:
        self._values = self._bytes = limit

    def of(self, value: object, depth: int = 20) -> Any:  # noqa: ANN401
        """The copy; raises ValueError for what is too much, too deep, or not plain."""
        self._values -= 1
        if self._values < 0 or depth == 0:
            raise ValueError("more values than the file has room for")
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            return {self._key(key): self.of(part, depth - 1) for key, part in dict.items(value)}
        if isinstance(value, list | tuple):
            return type(value)(self.of(part, depth - 1) for part in value)
        if value is None or isinstance(value, str | int | float):
            return value
        raise ValueError(f"a {type(value).__name__}")

    def _key(self, key: object) -> str | int:
        if isinstance(key, str | int):
            return key
        raise ValueError(f"a key of type {type(key).__name__}")

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError("a tensor of another kind")
        self._bytes -= tensor.numel() * tensor.element_size()
        if self._bytes < 0:
            raise ValueError("tensors are larger than the file")
        return tensor
