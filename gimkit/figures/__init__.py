"""The papers' figures on any model: `python -m gimkit figures`."""

from gimkit.figures.all import FIGURES, draw
from gimkit.figures.parts import Request

__all__ = ["FIGURES", "Request", "draw"]
