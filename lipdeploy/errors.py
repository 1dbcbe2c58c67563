"""The one family of errors that lipdeploy raises on purpose.

The command line prints each as a single red line and exits with its `exit_status`; a message
says what came, what was expected and what to do next.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def one_line(error: Exception, longest: int = 160) -> str:
    """What another library says of what it was given, fit for a message of ours."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


class LipdeployError(Exception):
    """Base of all errors that a user can act upon."""

    exit_status = 1


class UsageError(LipdeployError):
    """The command or the call was put together wrongly; exit status 2."""

    exit_status = 2


class ShapeError(LipdeployError):
    """An array has another shape than the operation needs."""


class ImageError(LipdeployError):
    """An image cannot be read, or is of a kind that is not supported."""


class DatasetError(LipdeployError):
    """A dataset is missing, empty or laid out in another way than expected."""


@contextmanager
def readable(path: Path, kind: str, advice: str) -> Iterator[None]:
    """What another library raises on damaged or hostile bytes, of many kinds, as DatasetError.

    Args:
        path: of the file that is read.
        kind: what it should be, as in "tar file".
        advice: what to do where it is not.
    """
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{path}: not a readable {kind} ({one_line(error)}); {advice}"
        ) from error


class ModelError(LipdeployError):
    """A model file is missing, damaged, foreign or of an unknown format version."""


class BoundError(LipdeployError):
    """A bound could not be proven."""


class FreezeError(LipdeployError):
    """A network cannot be frozen in the form that was asked for."""


class ExportError(LipdeployError):
    """An engine could not be written, or failed its check after writing."""


class EngineError(LipdeployError):
    """An engine cannot run here, or not on the device that was asked for."""


class ArithmeticMismatchError(EngineError):
    """A runtime computes less precisely than the certificates of its engine assume."""


class OutputError(LipdeployError):
    """A file cannot be written."""


class TrainingError(LipdeployError):
    """A training run cannot start, go on or be resumed."""


class ToldElsewhereError(LipdeployError):
    """Another process of the same run failed and prints why; this one only has to end."""
