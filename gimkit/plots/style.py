"""The one style of all figures: colours, axes, texts, and figures as files."""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import pandas
import seaborn
from matplotlib import colors, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from gimkit.files import atomic_write, write_table, write_text

BLUE, ORANGE, GREEN, PINK, GREY = (seaborn.color_palette("colorblind")[i] for i in (0, 1, 2, 4, 7))
DIVERGING = seaborn.blend_palette([ORANGE, "#f7f7f7", BLUE], as_cmap=True)  # orange against, blue for
DARK = "#333333"
MARKERS = "osD^vP*Xhp"
COLOURS = dict(zip(("gim", "gradient", "freeze", "ig", "relp", "gp", "attnlrp", "random", "temperature", "gim-ig"),
                   seaborn.color_palette("colorblind"), strict=True)) | {"exact": DARK}
SAME = {"eap": "gradient", "eap-ig": "ig", "eap-gp": "gp", "ig-inputs": "ig", "ig-activations": "ig", "nap-ig": "ig",
        "occlusion": "exact", "leave-one-out": "exact", "shapley": "exact", "atp*": "attnlrp"}  # other names


def panels(n: int, width: float, height: float, **options: Any) -> tuple[Figure, numpy.ndarray]:
    """A figure with n axes side by side, in the kit's style.

    >>> figure, (left, right) = panels(2, 10, 4)

    Args:
        n: axes.
        width, height: of the figure, in inches.
        options: as in `matplotlib.figure.Figure.subplots`.

    Returns:
        The figure, and an array [n] of its axes.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    with seaborn.axes_style("whitegrid"):
        return figure, figure.subplots(1, n, squeeze=False, **options)[0]


def method_colour(method: str) -> tuple:
    """The colour of a method, the same in every figure; grey for one without a colour of its own.

    >>> method_colour("GIM") == BLUE, method_colour("EAP") == method_colour("gradient") == ORANGE
    (True, True)

    Args:
        method: a name of `gimkit`, or of a paper, in any case.

    Returns:
        A colour of matplotlib.
    """
    name = method.lower().partition(",")[0]
    return colors.to_rgb(COLOURS.get(SAME.get(name, name), GREY))


def _equal_axes(ax: Axes, x: Any, y: Any) -> None:
    """The same limits and the same unit on both axes, so that the diagonal has one slope in all figures."""
    values = numpy.concatenate([numpy.ravel(x), numpy.ravel(y), [0.0]])
    low, high = float(values.min()), float(values.max())
    room = 0.08 * (high - low) or 1.0
    ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
    ax.locator_params(nbins=6)
    ax.axline((0, 0), slope=1, color=DARK, linestyle="--", linewidth=0.9)


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The given axes, or new ones in the kit's style."""
    if ax is not None:
        return ax
    with seaborn.axes_style("whitegrid"):
        return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def _plain(text: object) -> str:
    """A text for matplotlib without mathematics between dollar signs, and with visible blanks and line ends."""
    text = str(text).replace("$", r"\$")
    return text.replace("\n", "⏎") if text.strip(" ") else "␣" * max(1, len(text))


def _name_points(ax: Any, named: Iterable, points: Sequence) -> None:
    """Write names next to points, in their order, where no other name, point or piece of the diagonal is in the way."""
    ax.figure.draw_without_rendering()  # fixes the limits, so that distances in pixels are known
    low, high = ax.get_xlim()
    diagonal = numpy.linspace(low, high, 200)[:, None].repeat(2, 1)
    taken = [Bbox.from_extents(x - size, y - size, x + size, y + size) for places, size in ((points, 5), (diagonal, 1))
             for x, y in ax.transData.transform(places)] + [ax.get_legend().get_window_extent()]
    for x, y, name in named:
        for dx, dy in (*product((7, -7), (0, -7, 7)), (0, 12), (0, -12), *product((7, -7), (-14, 14))):
            text = ax.annotate(name, (x, y), (dx, dy), textcoords="offset points", fontsize=9, color=DARK,
                               ha={7: "left", 0: "center", -7: "right"}[dx], va="center")
            box = text.get_window_extent()
            inside = ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


CAPTIONS = """# Captions

One section for each figure: what it shows, for readers who cannot see it too. Each figure is a png and an svg; the
plotted numbers are in data/.
"""


def save(fig: Figure, path: str | Path, frame: pandas.DataFrame, alt: str, **about: str) -> Path:
    """Write a figure as png and svg, its numbers as csv in data/, its caption to CAPTIONS.md; reruns give equal bytes.

    >>> save(gimkit.plots.node_grid(nodes).figure, "figures/ioi-nodes", nodes.frame(), "Grid: a4.h2 matters most.")
    PosixPath('figures/ioi-nodes.png')

    Args:
        fig: matplotlib figure.
        path: of the files, without ending; folders are made.
        frame: the plotted numbers, a pandas table.
        alt: the figure in words, for readers who cannot see it.
        about: further lines of the caption, such as Differs="..."; an underscore in a name becomes a space.

    Returns:
        The png's path.
    """
    path = Path(path)
    with matplotlib.rc_context({"svg.hashsalt": "gimkit"}):
        for ending, nameless in (("png", {"Software": None}), ("svg", {"Date": None})):
            with atomic_write(f"{path}.{ending}") as new:
                fig.savefig(new, dpi=150, bbox_inches="tight", facecolor="white", metadata=nameless)
    write_table(path.parent / "data" / f"{path.name}.csv", frame)
    _write_caption(path, {"Shows": alt.strip()} | {name.replace("_", " "): text for name, text in about.items()})
    return Path(f"{path}.png")


def _write_caption(path: Path, lines: dict[str, str]) -> None:
    """Write one figure's section of CAPTIONS.md; sections are in alphabetical order, and the others stay."""
    file, sections = path.parent / "CAPTIONS.md", {}
    if file.is_file():
        for section in file.read_text(encoding="utf-8").split("\n## ")[1:]:
            sections[section.partition("\n")[0]] = section.strip()
    listed = "\n".join(f"- **{name}:** {text}" for name, text in lines.items())
    sections[path.name] = f"{path.name}\n\n![{path.name}]({path.name}.png)\n\n{listed}"
    text = CAPTIONS + "".join(f"\n## {sections[name]}\n" for name in sorted(sections))
    write_text(file, text)
