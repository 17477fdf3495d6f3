"""Token scores as figures."""

import torch
from matplotlib import cm, colors
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from gimkit.circuits.metric import UNITS
from gimkit.errors import GimkitError
from gimkit.plots.style import BLUE, DARK, DIVERGING, ORANGE, _axes, _plain
from gimkit.tokens import TokenScores


def token_bars(scores: TokenScores, ax: Axes | None = None) -> Axes:
    """A bar for each token, blue for the target and orange against it.

    >>> ax = token_bars(gimkit.attribute(model, "Mary drove to the farm with John. John lent a map to", "Mary"))

    Args:
        scores: of `gimkit.attribute`; a token that comes twice has two bars.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.
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


LINE = 72  # characters, blanks included


def token_heat(results: dict[str, TokenScores], ax: Axes | None = None) -> Axes:
    """A prompt's tokens on a coloured ground, once for each method, all on one colour scale; blue for, orange against.

    >>> ax = token_heat({m: gimkit.attribute(model, "Mary and John went", method=m) for m in ("gim", "gradient")})

    The colour key has the unit. Scores of at least a tenth of the largest stand under their tokens.

    Args:
        results: `TokenScores` of one prompt and target, by the name that stands above each text.
        ax: matplotlib axes; made when None.

    Returns:
        The matplotlib axes.

    Raises:
        GimkitError: the prompts differ.
    """
    first, *others = results.values()
    if any(scores.tokens != first.tokens for scores in others):
        raise GimkitError("heat maps over one text are of one prompt; these scores are of several")
    words = [_plain(token.strip() or token) for token in first.tokens]
    wide = [max(5, len(word) + 1) for word in words]  # at least as wide as a score
    places, row, left = [], 0, 0
    for width in wide:
        if left + width > LINE and left:
            row, left = row + 1, 0
        places.append((left, row))
        left += width
    height = 2 * (row + 1) + 1.2
    ax = _axes(ax, 9.5, 0.5 + 0.24 * height * len(results))
    most = max(float(scores.scores.abs().max()) for scores in results.values()) or 1.0
    scale = cm.ScalarMappable(colors.Normalize(-most, most), DIVERGING)
    for number, (name, scores) in enumerate(results.items()):
        top = number * height
        ax.text(0, top + 0.5, _plain(name), fontsize=10, fontweight="bold", va="center")
        for word, width, (x, line), score in zip(words, wide, places, scores.scores.tolist()):
            y = top + 1.1 + 2 * line
            ax.add_patch(Rectangle((x, y), width - 0.3, 1, facecolor=scale.to_rgba(score), linewidth=0))
            ax.text(x + (width - 0.3) / 2, y + 0.5, word, ha="center", va="center", family="monospace", fontsize=10,
                    color="white" if score > 0.8 * most else DARK)  # the blue end of the scale is dark
            if abs(score) >= 0.1 * most:
                ax.text(x + (width - 0.3) / 2, y + 1.4, f"{score:+.1f}", ha="center", va="center", fontsize=9)
    ax.set(xlim=(0, LINE), ylim=(height * len(results), 0))
    ax.axis("off")
    target = _plain(" ".join(first.target.split()))
    ax.figure.colorbar(scale, ax=ax, shrink=0.8, aspect=12, pad=0.01,
                       label=f"for {target}, in {UNITS.get(first.metric, first.metric)}")
    return ax
