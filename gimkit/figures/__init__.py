"""The papers' figures on any model: `python -m gimkit figures`."""

from gimkit.figures.all import FIGURES, draw

__all__ = ["FIGURES", "draw"]
