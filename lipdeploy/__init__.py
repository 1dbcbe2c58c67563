"""1-Lipschitz image classifiers whose every answer carries a guaranteed l2 radius."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipdeploy.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import `Predictor` when it is asked for, so that `lipdeploy --help` stays quick."""
    if name == "Predictor":
        from lipdeploy.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
