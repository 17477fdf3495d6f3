"""The notebooks' diagrams: `python notebooks/pictures/draw.py` writes each as svg beside this file."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from gimkit import plots
from gimkit.plots import BLUE, DARK, GREEN, GREY, ORANGE

FOLDER = Path(__file__).parent
PALE = {BLUE: "#dbe9f6", ORANGE: "#fbe8c8", GREEN: "#d3efe5", GREY: "#eeeeee", "white": "white"}


def page(width: float, height: float):
    """An empty page, a unit an inch, (0, 0) at the lower left."""
    figure = Figure(figsize=(width, height), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def box(ax, x, y, text, width=1.5, height=0.5, colour=GREY, size=11, **look):
    """A box around (x, y) with a text."""
    ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, facecolor=PALE[colour], linewidth=1.2,
                                boxstyle="round,pad=0,rounding_size=0.06", edgecolor=DARK if colour == "white" else colour))
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=DARK, **look)


def arrow(ax, start, end, colour=DARK, style="-", bend=0.0, width=1.6):
    """An arrow from one point to another."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=colour, linestyle=style,
                                 linewidth=width, connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0))


def say(ax, x, y, text, size=11, colour=DARK, align="center", **look):
    """A text at (x, y)."""
    ax.text(x, y, text, fontsize=size, color=colour, ha=align, va="center", **look)


def trace():
    """00: a model is a tree of modules; a trace reads one of them and keeps what is saved."""
    figure, ax = page(9.5, 3.4)
    say(ax, 2.3, 3.15, "the model: a tree of modules", weight="bold")
    box(ax, 2.3, 2.65, "model", 1.3)
    for x, name in ((0.85, "embedding"), (2.3, "block 0"), (3.75, "block 1 ...")):
        box(ax, x, 1.75, name, 1.3)
        arrow(ax, (2.3, 2.4), (x, 2.0), GREY)
    for x, name in ((1.5, "attention"), (3.1, "MLP")):
        box(ax, x, 0.85, name, 1.3, colour=BLUE if name == "MLP" else GREY)
        arrow(ax, (2.3, 1.5), (x, 1.1), GREY)
    say(ax, 7.2, 3.15, "a trace: run it, read one module, save", weight="bold")
    lines = ("with model.trace(prompt):", "    output = mlp.output.save()", "", "output.shape   # (1, tokens, width)")
    for i, line in enumerate(lines):
        say(ax, 5.1, 2.5 - 0.42 * i, line, 11.5, align="left", family="monospace")
    arrow(ax, (3.8, 0.85), (5.5, 2.08), BLUE, bend=-0.2)
    say(ax, 7.2, 0.45, "inside the block the model runs;\nafter it only saved values are left", 10.5)
    return figure


def rules():
    """02: four places in a block, their forward pass untouched and their backward pass changed."""
    figure, ax = page(9.5, 4.5)
    say(ax, 1.2, 4.2, "place", weight="bold")
    say(ax, 4.15, 4.2, "forward: unchanged", weight="bold", colour=DARK)
    say(ax, 7.75, 4.2, "backward: GIM's rule", weight="bold", colour=BLUE)
    for y, place, forward, backward in (
            (3.55, "norm", "(x − mean) / σ", "σ is a constant:\neach part keeps its own share"),
            (2.6, "softmax", "softmax(scores)", "gradient of a softer softmax:\nsoftmax(scores / 2)"),
            (1.65, "q, k, v", "(q · k) times v", "a product has one credit to give:\n¼ to q, ¼ to k, ½ to v"),
            (0.7, "gate", "act(gate) times up", "½ to the gate, ½ to up")):
        box(ax, 1.2, y, place, 1.5, 0.6)
        box(ax, 4.15, y, forward, 2.4, 0.6, "white", family="monospace")
        box(ax, 7.75, y, backward, 3.2, 0.74, BLUE, 10.5)
        arrow(ax, (2.0, y + 0.12), (2.9, y + 0.12))
        arrow(ax, (6.1, y - 0.12), (5.42, y - 0.12), BLUE, "--")
    say(ax, 4.75, 0.14, "→ values, the same to the last bit        ⇠ gradients, changed", 10.5)
    return figure


def row():
    """03: an attention row whose two main scores carry the same information, ablated one at a time and together."""
    figure, ax = page(9.5, 3.2)
    cases = (("intact", (0.5, 0.5), "output 10.0"), ("first ablated", (0.03, 0.96), "output 9.9"),
             ("second ablated", (0.96, 0.03), "output 9.9"), ("both ablated", (0.25, 0.25), "output 5.0"))
    for i, (title, weights, output) in enumerate(cases):
        left = 0.3 + 2.35 * i
        say(ax, left + 0.9, 2.95, title, weight="bold")
        rest = (1 - sum(weights)) / 3
        for k, weight in enumerate((*weights, rest, rest, rest)):
            ax.bar(left + 0.1 + 0.4 * k, 1.7 * weight + 0.02, 0.3, bottom=0.85, color=BLUE if k < 2 else GREY)
        for k, word in enumerate(("Mary", "Mary", "was", "at", "the")):
            say(ax, left + 0.1 + 0.4 * k, 0.62, word, 9, rotation=30)
        say(ax, left + 0.9, 0.2, output, 11, ORANGE if i == 3 else DARK, weight="bold")
    return figure


def patch():
    """04: one part of the clean run takes its output from the corrupt run."""
    figure, ax = page(9.5, 2.9)
    for y, colour, name, end in ((2.2, BLUE, "Ethan wanted to give ... to", "Charles"),
                                 (0.7, ORANGE, "Charles wanted to give ... to", "Ethan")):
        box(ax, 1.5, y, name, 2.6, 0.55, colour, 10.5)
        for x, part in ((3.7, "head"), (5.3, "MLP"), (6.9, "head")):
            box(ax, x, y, part, 1.0, 0.5, ORANGE if (y > 2 and x == 5.3) else colour)
        for start, stop in ((2.8, 3.2), (4.2, 4.8), (5.8, 6.4), (7.4, 8.0)):
            arrow(ax, (start, y), (stop, y), colour)
        say(ax, 8.1, y, end + (" ?" if y > 2 else ""), 11.5, align="left", weight="bold")
    arrow(ax, (5.3, 0.97), (5.3, 1.92), ORANGE)
    say(ax, 5.5, 1.45, "one output is copied over", 10.5, align="left")
    say(ax, 0.25, 2.65, "clean", weight="bold", colour=BLUE, align="left")
    say(ax, 0.25, 1.15, "corrupt", weight="bold", colour=ORANGE, align="left")
    return figure


def edge():
    """05: a reader sums what earlier parts wrote; cutting one edge changes one term, for this reader only."""
    figure, ax = page(9.5, 3.1)
    box(ax, 1.3, 2.4, "head A", 1.4)
    box(ax, 1.3, 1.5, "head B", 1.4)
    box(ax, 1.3, 0.6, "head B, corrupt run", 2.1, colour=ORANGE, size=10)
    box(ax, 5.3, 2.2, "reader 1: A + B", 2.4, colour=BLUE)
    box(ax, 5.3, 0.8, "reader 2: A + B", 2.4, colour=BLUE)
    arrow(ax, (2.0, 2.4), (4.1, 2.3))
    arrow(ax, (2.0, 2.4), (4.1, 0.95))
    arrow(ax, (2.0, 1.5), (4.1, 2.1))
    arrow(ax, (2.0, 1.5), (4.1, 0.8), GREY, ":")
    say(ax, 3.0, 1.17, "×", 20, ORANGE, weight="bold")
    arrow(ax, (2.35, 0.6), (4.1, 0.68), ORANGE)
    box(ax, 8.2, 1.5, "logits", 1.4)
    arrow(ax, (6.5, 2.2), (7.5, 1.6))
    arrow(ax, (6.5, 0.8), (7.5, 1.4))
    say(ax, 6.9, 0.2, "edge B → reader 2 is cut; reader 1 still gets B", 10.5)
    return figure


def l3d():
    """06: gradients of samples, a few subnetworks, and the gradients rebuilt from them."""
    figure, ax = page(9.5, 3.0)
    say(ax, 1.25, 2.75, "gradients", weight="bold")
    say(ax, 4.75, 2.75, "subnetworks: keep the largest", weight="bold")
    say(ax, 8.25, 2.75, "rebuilt gradients", weight="bold")
    for i, uses in enumerate(((0,), (2,), (0, 1))):
        y = 2.1 - 0.7 * i
        box(ax, 1.25, y, f"sample {i + 1}", 1.6, 0.48)
        box(ax, 8.25, y, f"sample {i + 1}", 1.6, 0.48)
        for k in range(3):
            target = 2.1 - 0.7 * k
            look = {"colour": BLUE, "width": 1.8} if k in uses else {"colour": "#dddddd", "width": 0.8}
            arrow(ax, (2.05, y), (3.85, target), **look)
            if k in uses:
                arrow(ax, (5.65, target), (7.45, y), **look)
    for k in range(3):
        box(ax, 4.75, 2.1 - 0.7 * k, f"direction {k + 1}", 1.8, 0.48, BLUE)
    say(ax, 2.95, 0.2, "how much of each direction?", 10.5)
    say(ax, 6.55, 0.2, "add the directions up again", 10.5)
    return figure


def gallery():
    """07: a paper's figure, the command that measures and draws it, and what is kept beside it."""
    figure, ax = page(9.5, 2.2)
    box(ax, 1.4, 1.2, "a figure\nof the paper", 2.0, 1.0)
    box(ax, 4.75, 1.2, "python -m figures NAME", 2.8, 0.7, "white", family="monospace")
    arrow(ax, (2.45, 1.2), (3.3, 1.2))
    for y, text in ((1.9, "picture"), (1.2, "its numbers, as csv"), (0.5, "caption: how it differs")):
        box(ax, 8.0, y, text, 2.4, 0.5, BLUE, 10.5)
        arrow(ax, (6.2, 1.2), (6.75, y), BLUE)
    say(ax, 4.75, 0.3, "prompts, intervals, controls", 10.5)
    return figure


def remote():
    """08: code and names go up, scores come down, the weights stay."""
    figure, ax = page(9.5, 2.4)
    box(ax, 1.6, 1.3, "your laptop\ncode, prompts", 2.4, 1.2)
    box(ax, 7.9, 1.3, "server\nweights, GPU", 2.4, 1.2, BLUE)
    arrow(ax, (2.9, 1.6), (6.6, 1.6))
    say(ax, 4.75, 1.85, "code and names: kilobytes")
    arrow(ax, (6.6, 1.0), (2.9, 1.0), BLUE)
    say(ax, 4.75, 0.72, "saved scores: kilobytes")
    say(ax, 4.75, 0.2, "weights and activations: gigabytes, they stay there", 10.5)
    return figure


def saturation():
    """01: what lowering two scores does, and what gradients predict."""
    return plots.saturation(plots.saturation_effects())[0].figure


if __name__ == "__main__":
    with matplotlib.rc_context({"svg.hashsalt": "gimkit"}):
        for draw in (trace, saturation, rules, row, patch, edge, l3d, gallery, remote):
            draw().savefig(FOLDER / f"{draw.__name__}.svg", metadata={"Date": None})
