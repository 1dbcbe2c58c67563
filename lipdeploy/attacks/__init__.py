"""Attacks on what an engine answers, with gradients of its frozen network in torch."""

from lipdeploy.errors import EngineError


def check_torch() -> None:
    """Raise EngineError where torch is missing, before any work."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "--attack needs torch for gradients; pip install 'lipdeploy[train]', or leave out "
            "--attack"
        ) from error
