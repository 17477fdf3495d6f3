"""Token scores as figures."""

import torch
from matplotlib.axes import Axes

from gimkit.circuits.metric import UNITS
from gimkit.plots.style import BLUE, DARK, ORANGE, _axes, _plain
from gimkit.tokens import TokenScores


def token_bars(scores: TokenScores, ax: Axes | None = None) -> Axes:
    """A bar for each token, blue for the target and orange against it.

    >>> ax = token_bars(gimkit.attribute(model, "Mary drove to the farm with John. John lent a map to", "Mary"))

    Args:
        scores: of `gimkit.attribute`; a token that comes twice has two bars.
        ax: matplotlib axes; made when None.
    """
    ax = _axes(ax, min(24.0, max(4.0, 1.2 + 0.42 * len(scores.tokens))), 3.2)
    values = torch.as_tensor(scores.scores).double().numpy()
    positions = range(len(values))
    ax.bar(positions, values, color=[BLUE if value > 0 else ORANGE for value in values], width=0.8)
    ax.axhline(0, color=DARK, linewidth=0.8)
    room = 72 * ax.get_window_extent().width / ax.figure.dpi / len(values)  # points per token
    ax.set_xticks(positions, [_plain(token) for token in scores.tokens], fontsize=min(10.0, max(4.0, 0.8 * room)),
                  rotation=60, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.7, len(values) - 0.3)
    ax.grid(False, axis="x")
    ax.set(xlabel="", ylabel=f"score ({UNITS.get(scores.metric, scores.metric)})",
           title=_plain(f"{scores.method}: what speaks for {scores.target!r}"))
    return ax
