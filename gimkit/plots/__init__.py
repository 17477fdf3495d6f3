"""Results as matplotlib axes, and figures as files. Nothing here computes a score or prints.

Each function draws on the axes that it is given, or makes some, and returns them.
"""

from gimkit.plots.circuit import circuit_graph
from gimkit.plots.l3d import (
    beside_gim,
    change_scatter,
    coefficient_scatter,
    encoder_plane,
    error_bars,
    reading_grid,
    reads,
    selection_dots,
    sweep_lines,
)
from gimkit.plots.saturation import rule_changes, saturation, saturation_effects
from gimkit.plots.scores import faithfulness_curves, method_scatter, node_grid
from gimkit.plots.selfrepair import ablation_effect, direct_against_total, grad_vs_tsg, head_compensation
from gimkit.plots.style import BLUE, DARK, GREEN, GREY, ORANGE, PINK, method_colour, panels, save
from gimkit.plots.tokens import token_bars, token_heat

__all__ = ["BLUE", "DARK", "GREEN", "GREY", "ORANGE", "PINK", "ablation_effect", "beside_gim", "change_scatter",
           "circuit_graph", "coefficient_scatter", "direct_against_total", "encoder_plane", "error_bars",
           "faithfulness_curves", "grad_vs_tsg", "head_compensation", "method_colour", "method_scatter", "node_grid",
           "panels", "reading_grid", "reads", "rule_changes", "saturation", "saturation_effects", "save",
           "selection_dots", "sweep_lines", "token_bars", "token_heat"]
