"""The bundled models: how to load them, how to measure them, and how they were trained."""

from gimkit.models.load import BUNDLED, load
from gimkit.models.measure import accuracy

__all__ = ["BUNDLED", "accuracy", "load"]
