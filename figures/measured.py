"""Figures of what the benchmarks measured, drawn from their csv files."""

from pathlib import Path

import pandas

from benchmarks.planted.measure import KINDS, summary
from benchmarks.search import GRID
from figures import comparison, papers
from figures.parts import Request
from gimkit.errors import GimkitError
from gimkit.rules import RULES

PASSES = {"gim": "GIM, one pass", "gradient": "gradient (EAP), one pass", "ig-inputs": "EAP-IG, five passes",
          "gim-ig": "GIM averaged, five passes", "random": "random edges"}
BY_DEPTH = {"gradient": "gradient", "freeze": "norms frozen", "freeze+qkv": "frozen, q k v divided",
            "freeze+gate": "frozen, gated product halved", "gim": "GIM (all of it, T = 2)", "nap-ig": "five passes"}
RANKS = {"spearman": "all heads and MLPs", "within": "inside each layer", "strongest": "the 30 with the largest effect"}
PLACES = ("mini-llama", "mini-gpt2", "smollm2-135m")
FIFTHS = [f"size_{part}" for part in range(1, 6)]


def stored(name: str, label: str) -> pandas.DataFrame:
    """The csv file of a benchmark for a model.

    Raises:
        GimkitError: it has not been measured.
    """
    path = Path("benchmarks") / f"{name.format(label)}.csv"
    if not path.is_file():
        raise GimkitError(f"{path} is missing: its command is in benchmarks/README.md")
    return pandas.read_csv(path)


def edges(request: Request):
    """CPR and CMD of one pass and of five, task by task: (figure, table, alternative text)."""
    table = stored("compare-{}-mean", request.label)
    frame = table[table["method"].isin(list(PASSES))]
    means = frame[frame["method"] != "random"].groupby("method", sort=False)[["cpr", "cmd"]].mean()
    other = frame[frame["method"] == "ig-inputs"].set_index("task")
    # a lead counts where its interval over prompts leaves 0 out
    won = {"cpr": other.index[other["cpr_ahead_low"] > 0], "cmd": other.index[other["cmd_ahead_high"] < 0]}
    lost = {"cpr": other.index[other["cpr_ahead_high"] < 0], "cmd": other.index[other["cmd_ahead_low"] > 0]}
    said = "; ".join(f"{PASSES[method]}: CPR {row.cpr:.2f}, CMD {row.cmd:.3f}" for method, row in means.iterrows())
    ends = "; ".join(f"by {area.upper()} one GIM pass is better than five of EAP-IG on "
                     f"{', '.join(won[area]) or 'none'}, worse on {', '.join(lost[area]) or 'none'}" for area in won)
    alt = (f"Dots with 95% intervals over prompts: CPR (high is good) and CMD (low is good) of circuits of "
           f"{request.label}, a row per task, a colour per method. Means over tasks: {said}. Where the interval of the "
           f"difference leaves 0 out, {ends}.")
    return papers.passes(frame, PASSES), frame, alt


def nodes(request: Request):
    """How large node scores are by depth, and their ranks overall and inside layers: (figure, table, text)."""
    table = stored("nodes-{}", request.label)
    frame = table[table["method"].isin(list(BY_DEPTH)) & table["statistic"].isin([*FIFTHS, *RANKS])]
    means = frame.groupby(["method", "statistic"], sort=False)["value"].mean().unstack()
    said = "; ".join(f"{method}: sizes {', '.join(f'{means.loc[method, part]:.2f}' for part in FIFTHS)}, Spearman "
                     f"{means.loc[method, 'spearman']:.2f}, inside layers {means.loc[method, 'within']:.2f}, of the "
                     f"strongest 30 {means.loc[method, 'strongest']:.2f}"
                     for method in BY_DEPTH)
    alt = (f"Left: sum of |score| over sum of |exact effect| of heads and MLPs of {request.label} in each fifth of the "
           f"layers, mean over tasks; 1 is right. Right: Spearman's correlation with exact patching, over all nodes, "
           f"inside each layer, and over the 30 nodes with the largest effect. {said}.")
    return papers.depth(frame, BY_DEPTH, FIFTHS, RANKS), frame, alt


def sizes(request: Request):
    """Faithfulness against the number of edges: (figure, table, alternative text)."""
    return comparison.drawing(stored("compare-{}-curves", request.label))


def runtime(request: Request):
    """CPU seconds as multiples of EAP's: (figure, table, alternative text)."""
    table = stored("compare-{}", request.label)
    rows = table[table["method"].isin(list(comparison.DRAWN))]
    rows = rows.groupby(["task", "method"], sort=False, as_index=False)["cpu_seconds"].mean()
    eap = rows[rows["method"] == "gradient"].set_index("task")["cpu_seconds"]
    frame = rows.assign(ratio=rows["cpu_seconds"] / rows["task"].map(eap), method=rows["method"].map(comparison.DRAWN))
    means = frame.groupby("method", sort=False)["ratio"].mean()
    alt = (f"Bars: CPU time to score all edges of {request.label} as a multiple of EAP's, mean over {len(eap)} tasks. "
           + ", ".join(f"{method} {value:.1f}" for method, value in means.items()) + ".")
    return papers.runtimes(frame), frame, alt


def planted(request: Request):
    """How well methods find circuits that are known: (figure, table, alternative text)."""
    frame = summary(stored("planted", ""))
    said = "; ".join(f"{row.method} on {row.kind} models: AUROC {row.auroc:.2f}, average precision "
                     f"{row.average_precision:.2f}" for row in frame.itertuples())
    alt = (f"Dots with 95% intervals over programs: AUROC and average precision of edges against known circuits, a row "
           f"per method, a colour per kind of model. {said}.")
    return papers.known_circuits(frame), frame, alt


def rules(request: Request):
    """All searched rules, as good for edges and for nodes: (figure, table, alternative text)."""
    table = pandas.concat([stored(name, "") for name in ("search", "search-smollm2-135m")])
    shown = [setting for setting, rules in GRID.items() if not rules.detach_attention]  # those are far off to the right
    table = table[(table["half"] == "search") & table["setting"].isin(shown)]
    values = table.pivot(index="setting", columns=["statistic", "model"], values="value")
    pairs = {model: (values["edges cmd", model], values["nodes pearson", model], -1) for model in PLACES}
    pairs["planted circuits"] = (*(values["edges average precision", kind] for kind in KINDS), 1)
    frame = pandas.concat([pandas.DataFrame({"model": model, "setting": x.index, "x": x, "y": y,
                                             "frontier": papers.frontier(sign * x, y)})
                           for model, (x, y, sign) in pairs.items()], ignore_index=True)
    frame = frame.join(pandas.DataFrame([GRID[setting]._asdict() for setting in frame["setting"]]))
    named = frame["setting"].where(frame["setting"].isin(list(RULES)))
    best = "; ".join(f"{model}: {len(own)} settings, of those with a name {', '.join(own.dropna()) or 'none'}"
                     for model, own in named[frame["frontier"]].groupby(frame["model"], sort=False))
    alt = (f"Dots: {frame['setting'].nunique()} searched settings of the backward rules, on the search half of the "
           f"tasks. For each model CMD of edges (low is good) against Pearson's correlation of nodes with exact "
           f"patching; last, average precision of edges on compiled and on trained planted circuits. A line joins the "
           f"settings that no other beats by both. {best}.")
    return papers.searched(frame), frame, alt
