"""Widgets for notebooks: a figure is redrawn from existing numbers whenever a control is moved.

Each one carries its first picture, which a viewer without a kernel shows in its place.
"""

from collections.abc import Mapping
from itertools import combinations

import ipywidgets
import pandas
import seaborn
import torch
from IPython.display import display
from matplotlib import pyplot
from nnsight.intervention.envoy import Envoy

from gimkit import plots
from gimkit.circuits import Curve, EdgeScores
from gimkit.errors import GimkitError
from gimkit.l3d import Decomposition, interventions
from gimkit.notebook.explorer import add_picture, curve_circuits
from gimkit.selfrepair import HeadRepair, SelfRepair


class Pictured(ipywidgets.VBox):
    """A widget with a picture in its place where no kernel runs, as on GitHub.

    >>> Pictured([ipywidgets.Label("live")], figure=plots.saturation(plots.saturation_effects())[0].figure)
    Pictured(children=(Label(value='live'),))

    Args:
        children: widgets.
        figure: a matplotlib figure, the picture.
    """

    def __init__(self, children=(), figure=None, **options):
        super().__init__(children, **options)
        self._figure = figure

    def _repr_mimebundle_(self, **options):
        return add_picture(super()._repr_mimebundle_(**options), self._figure)


def saturation_explorer() -> Pictured:
    """Sliders for two attention scores and the temperature, with `gimkit.plots.saturation` of one attention row.

    >>> explorer = saturation_explorer()                         # scores [6, 6, 0, 0, 0], values [10, 10, 0, 0, 0]
    """
    def slider(value, low, high, step, name):
        return ipywidgets.FloatSlider(value=value, min=low, max=high, step=step, description=name,
                                      style={"description_width": "initial"}, continuous_update=False)

    first, second = (slider(6, 0, 16, 0.5, f"score {number}") for number in (1, 2))
    equal = ipywidgets.Checkbox(value=True, description="both equal", indent=False)
    controls = {"first": first, "second": second, "equal": equal, "temperature": slider(2, 1, 5, 0.25, "temperature")}

    def follow(_):
        if equal.value:
            second.value = first.value

    def lead(change):
        if equal.value:
            first.value = change["new"]

    first.observe(follow, "value")
    equal.observe(follow, "value")
    second.observe(lead, "value")

    def draw(first, second, equal, temperature):
        effects = plots.saturation_effects((first, second, 0, 0, 0), temperature=temperature)
        return plots.saturation(effects, limits=(-1, 12))[0].figure

    return _explorer(controls, draw)


def rule_explorer(changes: dict, tokens: dict) -> Pictured:
    """A checkbox for each rule: how far the chosen rules move the gradient, and the tokens' scores under them.

    >>> tokens = {frozenset(rules): gimkit.attribute(model, "Mary and John went home", "and", method=method)
    ...           for rules, method in (((), "gradient"), (("norm",), "freeze"))}
    >>> explorer = rule_explorer({frozenset(): 0.0, frozenset({"norm"}): 0.31}, tokens)

    Args:
        changes: the relative change of the gradient by set of rule names; every subset, 16 for four rules.
        tokens: `TokenScores` by the same sets.

    Returns:
        The widget.

    Raises:
        GimkitError: a subset is missing.
    """
    names = list(dict.fromkeys(name for rules in sorted(changes, key=len) for name in sorted(rules)))
    subsets = [frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)]
    for rules in subsets:
        if rules not in changes or rules not in tokens:
            raise GimkitError(f"no entry for the rules {_title(rules, names)}; "
                              "give changes and tokens for every subset")
    table = pandas.DataFrame({"rules": [_title(rules, names) for rules in subsets],
                              "change": [float(changes[rules]) for rules in subsets]})
    most = 1.1 * max(float(scores.scores.abs().max()) for scores in tokens.values())
    controls = {name: ipywidgets.Checkbox(value=False, description=name, indent=False) for name in names}

    def draw(**ticked):
        chosen = frozenset(name for name in names if ticked[name])
        with seaborn.axes_style("whitegrid"):
            figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 1.2 + 0.24 * len(subsets)), layout="constrained")
        plots.rule_changes(table, ax=left)
        for rules, bar in zip(subsets, left.patches):
            bar.set_alpha(1.0 if rules == chosen else 0.3)
        plots.token_bars(tokens[chosen], ax=right)
        right.set(ylim=(-most, most), title=f"Rules: {_title(chosen, names)}")
        return figure

    return _explorer(controls, draw)


def token_tabs(results: list) -> Pictured:
    """A tab for each attribution method, on one colour scale; a token's score appears under the pointer.

    >>> tabs = token_tabs([gimkit.attribute(model, "Mary and John went", method=m) for m in ("gim", "gradient")])

    Args:
        results: `TokenScores` of one prompt.

    Returns:
        The widget.
    """
    most = max(float(scores.scores.abs().max()) for scores in results)
    tabs = ipywidgets.Tab(children=[ipywidgets.HTML(scores._repr_html_(most)) for scores in results],
                          titles=[scores.method for scores in results])
    return Pictured([tabs], _drawn(lambda: plots.token_heat({s.method: s for s in results}).figure))


def node_explorer(results: list) -> Pictured:
    """A menu of methods, with the chosen one's grid of heads and MLPs.

    >>> explorer = node_explorer([gimkit.score_nodes(model, task, method=m) for m in ("exact", "gim", "gradient")])

    Args:
        results: `NodeScores`.

    Returns:
        The widget.
    """
    options = [(f"{scores.method} on {scores.task}", i) for i, scores in enumerate(results)]

    most = max(float(scores.frame().query("kind in ('head', 'mlp')")["score"].abs().max()) for scores in results)

    def draw(which):
        return plots.node_grid(results[which], most=most).figure

    return _explorer({"which": ipywidgets.Dropdown(options=options, description="scores")}, draw)


def circuit_size(edges: EdgeScores, curve: Curve, roles: Mapping | pandas.Series | None = None) -> Pictured:
    """A slider over the sizes of a curve's circuits, with the circuit and its point on the curve.

    >>> slider = circuit_size(edges, curve)

    Args:
        edges: the scores that the curve's circuits were cut from.
        curve: their faithfulness.
        roles: as in `gimkit.plots.circuit_graph`.

    Returns:
        The widget.

    Raises:
        GimkitError: the curve belongs to other scores.
    """
    circuits = curve_circuits(edges, curve)
    options = [(f"{len(circuit)} edges", i) for i, circuit in enumerate(circuits)]

    def draw(which):
        with seaborn.axes_style("whitegrid"):
            figure, (above, below) = pyplot.subplots(2, 1, figsize=(11, 10), height_ratios=(4, 1), layout="constrained")
        circuits[which].plot(roles, ax=above)
        plots.faithfulness_curves([curve], ax=below)
        share, kept = curve.shares[which], curve.faithfulness[which]
        below.plot(share, kept, "o", color=plots.ORANGE, markersize=12)
        below.set_title(f"{len(circuits[which])} edges keep {kept:.2f}")
        return figure

    return _explorer({"which": ipywidgets.SelectionSlider(options=options, value=len(options) // 2, description="size",
                                                          continuous_update=False)}, draw)


def repair_explorer(scores: SelfRepair, heads: HeadRepair) -> Pictured:
    """Menus of layers and heads, with the head's attention rows and the parts that compensate for the head.

    It opens on the head that is repaired most.

    >>> explorer = repair_explorer(gimkit.self_repair(model, task[:8]), gimkit.selfrepair.head_repair(model, task[:8]))

    Args:
        scores: of `gimkit.self_repair`.
        heads: of `gimkit.selfrepair.head_repair`, for the same model.

    Returns:
        The widget.
    """
    layers, numbers = (sorted({int(part) for part in parts})
                       for parts in zip(*(name[1:].split(".h") for name in heads.heads)))
    first = heads.frame().sort_values("repaired").iloc[-1]
    controls = {"layer": ipywidgets.Dropdown(options=layers, value=int(first["layer"]), description="layer"),
                "head": ipywidgets.Dropdown(options=numbers, value=int(first["head"]), description="head")}

    most = 1.3 * float(heads.compensation.mean(0).abs().max())

    def draw(layer, head):
        with seaborn.axes_style("whitegrid"):
            figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
        plots.ablation_effect(scores, ax=left, head=f"a{layer}.h{head}")
        plots.head_compensation(heads, f"a{layer}.h{head}", ax=right)
        right.set_xlim(-most, most)
        return figure

    return _explorer(controls, draw)


def subnetwork_explorer(found: Decomposition, module: Envoy | torch.nn.Module, inputs: torch.Tensor) -> Pictured:
    """Sliders for a subnetwork and for how far the parameters move along it, with the changes of outputs and samples.

    >>> toy = gimkit.l3d.toys.train("tms", seeds=[0], epochs=1, n=100, tries=1)[0]
    >>> found = gimkit.l3d.decompose(toy.module, toy.inputs(64), n=5, epochs=1, progress=False)
    >>> explorer = subnetwork_explorer(found, toy.module, toy.inputs(200, seed=1))

    Left, the mean |change| of each output over delta, the largest one in colour, and a line at the chosen delta. Right,
    each sample's change against its value of one input: the input whose active samples change most.

    Args:
        found: the module's decomposition.
        module: a torch module.
        inputs: samples [n, features].

    Returns:
        The widget.
    """
    deltas = torch.linspace(-3, 3, 25)
    swept = [interventions.sweep(module, found.subnetwork(which), deltas, inputs).numpy()
             for which in range(len(found))]
    highest = 1.05 * max(float(change.max()) for change in swept)
    furthest = 1.05 * max(float(interventions.change(module, found.subnetwork(which), delta, inputs).max())
                          for which in range(len(found)) for delta in (-3.0, 3.0))
    controls = {"which": ipywidgets.IntSlider(value=0, min=0, max=len(found) - 1, description="subnetwork",
                                              continuous_update=False),
                "delta": ipywidgets.FloatSlider(value=1.0, min=-3.0, max=3.0, step=0.25, description="delta",
                                                continuous_update=False)}

    def draw(which, delta):
        far = interventions.change(module, found.subnetwork(which), delta, inputs)
        active = inputs != 0
        means = [float(far[column].mean()) if bool(column.any()) else 0.0 for column in active.T]
        read = means.index(max(means))
        with seaborn.axes_style("whitegrid"):
            figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
        plots.sweep_lines(deltas.numpy(), swept[which], int(swept[which].sum(0).argmax()), ax=left)
        left.axvline(delta, color=plots.ORANGE, linewidth=1.4)
        left.set_title(f"subnetwork {which}, kept for {float(found.p_act[which]):.0%} of the samples")
        plots.change_scatter(inputs[:, read].numpy(), far.numpy(), active[:, read].numpy(), right, f"input {read}")
        right.set_title(f"delta {delta:g}")
        left.set_ylim(0, highest)
        right.set_ylim(0, furthest)
        return figure

    return _explorer(controls, draw)


def _explorer(controls: dict, draw) -> Pictured:
    """The controls in a row, above the figure that draw(**their values) returns."""
    def redraw(**values):
        display(_drawn(lambda: draw(**values)))

    first = _drawn(lambda: draw(**{name: control.value for name, control in controls.items()}))
    return Pictured([ipywidgets.HBox(list(controls.values())), ipywidgets.interactive_output(redraw, controls)], first)


def _drawn(draw):
    """The figure that draw() returns; it is closed, so that it is not shown again at the end of the cell."""
    figure = draw()
    pyplot.close(figure)
    return figure


def _title(rules, names: list) -> str:
    """The names of a set of rules, in the order of the checkboxes."""
    return " + ".join(name for name in names if name in rules) or "none (plain gradient)"
