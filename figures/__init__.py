"""The papers' figures on any model: `python -m figures`."""

from figures.draw import FIGURES, draw
from figures.parts import Request

__all__ = ["FIGURES", "Request", "draw"]
