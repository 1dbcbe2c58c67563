"""1-Lipschitz image classifiers whose every answer carries a guaranteed l2 radius."""

__version__ = "0.1.0"
