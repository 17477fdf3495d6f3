"""Token attributions compared with exact Shapley values: `python -m benchmarks.shapley_tokens NAME`."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy
import pandas
from scipy import stats
from tqdm.auto import tqdm

import gimkit
from benchmarks.ladder import LADDER
from benchmarks.tables import parser, show
from gimkit import tasks
from gimkit.cli import run_command
from gimkit.errors import GimkitError, check_known, check_whole
from gimkit.model.prompt import inner_positions
from gimkit.rules import RULES
from gimkit.statistics import bootstrap
from gimkit.tasks.encode import words_for
from gimkit.tokens.shapley import MOST

COMPARED = {name: dict(method=rules) for name, rules in (LADDER | RULES).items()} | {
    "deeplift": dict(method="deeplift"), "pattern-difference": dict(method="pattern-difference"),
    "ig-5": dict(method="ig", steps=5),
    "ig-20": dict(method="ig", steps=20),
    "leave-one-out": dict(method="occlusion"), "lime": dict(method="lime"), "kernelshap": dict(method="kernelshap"),
    "random": dict(method="random")}


def _short(words: list[str], answer: str, wrong: str, known: set[str]) -> list[int] | None:
    """All tokens except the first and the last, at most 12; None for longer prompts.

    >>> _short(["<s>", "Mary", "went", "to"], "Mary", "John", set())
    [1, 2]
    """
    inner = list(inner_positions(len(words)))
    return inner if len(inner) <= MOST else None


def _filled_in(words: list[str], answer: str, wrong: str, known: set[str]) -> list[int] | None:
    """Names, places, objects and deeds, the words that fill a template; the last 12 of them.

    >>> _filled_in(["<s>", "Mary", "went", "to"], "Mary", "John", {"Mary"})
    [1]
    """
    return [i for i in inner_positions(len(words)) if words[i] in known][-MOST:]


def _mentions(words: list[str], answer: str, wrong: str, known: set[str]) -> list[int] | None:
    """Every mention of the answer and of the wrong answer, except its last one, whose repetition decides the answer.

    >>> _mentions(["Mary", "and", "John", "met.", "John"], "Mary", "John", set())
    [0, 2]
    """
    of_wrong = [i for i, word in enumerate(words) if word == wrong]
    return sorted([i for i, word in enumerate(words) if word == answer] + of_wrong[:-1])


class _PromptSet(NamedTuple):
    """A kind of prompt, and the positions whose Shapley values are computed.

    >>> SETS["ioi"].players is _short
    True
    """

    task: Callable  # of (model, n, seed), returns a task
    players: Callable  # of (words, answer, wrong answer, known words), returns a prompt's free positions or None


SETS = {
    "ioi": _PromptSet(lambda *given: tasks.ioi(*given, names="held-out"), _short),
    "ioi twice": _PromptSet(lambda *given: tasks.ioi_twice(*given, names="held-out"), _filled_in),
    "odd one out": _PromptSet(lambda *given: tasks.odd_one_out(*given, names="held-out"), _filled_in),
    "induction, three times": _PromptSet(lambda *given: tasks.induction(*given, times=3), _short),
    "redundant, twice": _PromptSet(lambda *given: tasks.ioi_twice(*given, names="held-out"), _mentions),
    "redundant, three times": _PromptSet(lambda *given: tasks.ioi_twice(*given, names="held-out", times=3), _mentions),
}
BUNDLED = tuple(SETS)  # what the bundled models are compared on
SETS |= {  # for models whose prompts are longer, or that know facts
    "ioi, filled in": _PromptSet(lambda *given: tasks.ioi(*given, names="held-out"), _filled_in),
    "agreement": _PromptSet(tasks.agreement, _short), "capital": _PromptSet(tasks.capital, _short)}


def prompts(model, name: str, n: int, seed: int) -> list[tuple[str, tuple[str, str], list[int]]]:
    """n prompts of a set: (text, (answer, wrong), free positions).

    >>> prompts(model, "redundant, twice", 1, seed=0)[0][1:]
    (('Rebecca', 'Thomas'), [3, 5, 17, 19])

    Args:
        model: an nnsight model with its tokenizer.
        name: of SETS.
        n, seed: of the prompts.
    Raises:
        GimkitError: there is no such set, or fewer than n prompts suit the model's tokenizer.
    """
    check_known("prompt set", name, SETS)
    listed, found = words_for(model.tokenizer)[1], []
    known = {*listed.names, *listed.places, *sum(listed.places.values(), ()), *listed.deeds}
    for pair in SETS[name].task(model, 30 * n, seed).pairs:
        ids = model.tokenizer(pair.clean)["input_ids"]
        words = [model.tokenizer.decode([i]).strip() for i in ids]
        free = SETS[name].players(words, pair.answer, pair.wrong, known)
        if free is not None and len(free) >= 3:  # a correlation over two points says nothing
            found.append((pair.clean, (pair.answer, pair.wrong), free))
        if len(found) == n:
            return found
    raise GimkitError(f"{name}: only {len(found)} of {n} prompts suit this model's tokenizer; ask for fewer")


def measure(name: str, sets=BUNDLED, methods=tuple(COMPARED), n: int = 12, seeds=(0, 1, 2)) -> pandas.DataFrame:
    """A row for each prompt, free token and method, with the method's score and the token's Shapley value.

    >>> measure("mini-llama", ["redundant, twice"], ["gim", "random"], n=1, seeds=[0]).columns.tolist()
    ['model', 'set', 'seed', 'prompt', 'position', 'flagged', 'truth', 'single', 'method', 'score']

    Args:
        name: as in `gimkit.load`.
        sets: names in SETS.
        methods: names in COMPARED.
        n: prompts of each set and seed. Each seed draws new ones; where a set has names, the bundled models never saw
            them together.
        seeds: of the prompts.
    Returns:
        truth: the Shapley value of the logit difference. single: the loss when this token alone becomes neutral.
        flagged: whether the token is one of the two ablated positions in an attention row above the 95% quantile of
        interaction (`gimkit.self_repair` on that seed's prompts).
    Raises:
        GimkitError: there is no such set or method.
    """
    for method in methods:
        check_known("method", method, COMPARED)
    model, rows = gimkit.load(name), []
    drawn = [(kind, seed, prompts(model, kind, n, seed)) for kind in sets for seed in seeds]
    work = [(kind, seed, number, flagged, *prompt) for kind, seed, found in drawn
            for (number, prompt), flagged in zip(enumerate(found), repaired_positions(model, found))]
    for kind, seed, number, flagged, text, target, free in tqdm(work, desc="prompts", delay=2, leave=False):
        truth = gimkit.tokens.shapley(model, text, target, free=free).scores[free]
        singles = gimkit.attribute(model, text, target, method="occlusion", free=free).scores[free]
        about = {"model": name, "set": kind, "seed": seed, "prompt": number, "position": free,
                 "flagged": [position in flagged for position in free], "truth": truth, "single": singles}
        for method in methods:
            options = COMPARED[method] | {"seed": seed * n + number}
            scores = gimkit.attribute(model, text, target, free=free, **options).scores[free]
            rows.append(pandas.DataFrame(about | {"method": method, "score": scores}))
    return pandas.concat(rows, ignore_index=True)


def repaired_positions(model, drawn) -> list[set[int]]:
    """For each prompt, the positions that are i or j of a flagged attention row.

    >>> len(repaired_positions(model, prompts(model, "ioi", 2, seed=0)))
    2
    """
    rows = gimkit.self_repair(model, [text for text, _, _ in drawn]).frame().query("flagged")
    return [{*own.i, *own.j} for own in (rows[rows.example == number] for number in range(len(drawn)))]


def agreement(scores: numpy.ndarray, truth: numpy.ndarray) -> dict[str, float]:
    """Pearson, Spearman, and share, the sum of scores divided by the sum of true values; NaN where all are equal.

    >>> agreement(numpy.array([1.0, 2.0, 3.0]), numpy.array([2.0, 4.0, 6.0]))["share"]
    0.5
    """
    if numpy.ptp(scores) == 0 or numpy.ptp(truth) == 0:
        pearson = spearman = float("nan")
    else:
        pearson, spearman = stats.pearsonr(scores, truth).statistic, stats.spearmanr(scores, truth).statistic
    return {"pearson": float(pearson), "spearman": float(spearman), "share": float(scores.sum() / truth.sum())}


def summarise(table: pandas.DataFrame, against: str = "gim") -> pandas.DataFrame:
    """Means over prompts with 95% bootstrap intervals, a row for each set and method, the best Pearson first.

    >>> table = measure("mini-llama", ["redundant, twice"], ["gim", "random"], n=2, seeds=[0])
    >>> summarise(table).columns.tolist()[:7]
    ['model', 'set', 'method', 'prompts', 'pearson', 'pearson_low', 'pearson_high']

    Args:
        table: of `measure`.
        against: the method that the others are compared with.
    Returns:
        prompts: those with a correlation. seed_lowest, seed_highest: the mean Pearson of a seed. gim_ahead (or
        AGAINST_ahead): GIM's Pearson minus the method's, on the same prompts. share: of the sums over prompts. flagged,
        others: Pearson over the tokens of all prompts together that the self-repair analysis flags, and over the other
        tokens. flagged_ahead: GIM's flagged minus the method's. Prompts are resampled.
    """
    rows = []
    for (model, kind), group in table.groupby(["model", "set"], sort=False):
        by_method = dict(tuple(group.groupby("method", sort=False)))
        each = {method: own.groupby(["seed", "prompt"]).apply(
            lambda prompt: pandas.Series(agreement(prompt.score.to_numpy(), prompt.truth.to_numpy())))
            for method, own in by_method.items()}
        found = []
        for method, own in by_method.items():
            mine = each[method]
            row = {"model": model, "set": kind, "method": method, "prompts": int(mine.pearson.notna().sum())}
            row |= _intervals("pearson", mine.pearson) | _intervals("spearman", mine.spearman)
            by_seed = mine.pearson.groupby("seed").mean()
            row |= {"seed_lowest": by_seed.min(), "seed_highest": by_seed.max()}
            row |= _intervals(f"{against}_ahead", each[against].pearson - mine.pearson)
            row["share"] = own.score.sum() / own.truth.sum()
            reference = by_method[against]
            row |= _pooled("flagged", own[own.flagged]) | _pooled("others", own[~own.flagged])
            row |= _pooled("flagged_ahead", reference[reference.flagged], own[own.flagged])
            found.append(row)
        rows += sorted(found, key=lambda row: -row["pearson"])
    return pandas.DataFrame(rows)


def _pooled(name: str, table: pandas.DataFrame, minus: pandas.DataFrame | None = None) -> dict[str, float]:
    """Pearson of scores and truth over all tokens of a table, with its interval over prompts.

    >>> table = pandas.DataFrame({"seed": 0, "prompt": [0, 0, 1, 1], "score": [1.0, 2.0, 4.0, 3.0],
    ...                           "truth": [2, 3, 5, 4]})
    >>> _pooled("x", table)["x"]
    1.0

    Args:
        name: of the columns.
        table: of `measure`, for one method.
        minus: the same for another method, whose Pearson is subtracted.
    """
    def moments(tokens):
        products = pandas.DataFrame({"n": 1.0, "x": tokens.score, "y": tokens.truth, "xx": tokens.score**2,
                                     "yy": tokens.truth**2, "xy": tokens.score * tokens.truth})
        return products.groupby([tokens.seed, tokens.prompt]).sum().to_numpy()

    def pearson(sums):
        n, x, y, xx, yy, xy = sums
        return (n * xy - x * y) / numpy.sqrt((n * xx - x * x) * (n * yy - y * y))

    if len(table) < 3:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    ours, other = moments(table), None if minus is None else moments(minus)
    with numpy.errstate(divide="ignore", invalid="ignore"):  # equal scores have no correlation
        found = bootstrap(lambda i: pearson(ours[i].sum(0)) - (0 if minus is None else pearson(other[i].sum(0))),
                          len(ours))
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def interactions(table: pandas.DataFrame) -> pandas.DataFrame:
    """For each prompt set: do single effects sum to more than the joint effect, or to less?

    >>> table = measure("mini-llama", ["redundant, twice"], ["random"], n=8, seeds=[0])
    >>> bool(interactions(table).ratio[0] < 1)
    True

    More means that tokens are needed jointly, less that they are redundant.

    Args:
        table: of `measure`.
    Returns:
        joint: the loss of logit difference when all free tokens become neutral. singles: the sum of the losses when
        one does. ratio: the sum of singles divided by the sum of joint over all prompts, with a 95% bootstrap interval.
        below: the share of prompts whose singles are below their joint. flagged: the share of tokens that the
        self-repair analysis flags.
    """
    rows = []
    once = table[table.method == table.method.iloc[0]]
    for (model, kind), group in once.groupby(["model", "set"], sort=False):
        by = group.groupby(["seed", "prompt"])
        singles, joint = by.single.sum().to_numpy(), by.truth.sum().to_numpy()
        ratio = bootstrap(lambda i, s=singles, j=joint: s[i].sum() / j[i].sum(), len(joint))
        rows.append({"model": model, "set": kind, "prompts": len(joint), "players": by.size().mean(),
                     "singles": singles.mean(), "joint": joint.mean(), "ratio": ratio.value, "ratio_low": ratio.low,
                     "ratio_high": ratio.high, "below": (singles < joint).mean(), "flagged": group.flagged.mean()})
    return pandas.DataFrame(rows)


def _intervals(name: str, values: pandas.Series) -> dict[str, float]:
    """The mean of the values that are not NaN, and its interval, as three columns.

    >>> _intervals("x", pandas.Series([1.0, 1.0]))
    {'x': 1.0, 'x_low': 1.0, 'x_high': 1.0}
    """
    values = values.dropna().to_numpy()
    if not len(values):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    mean = bootstrap(lambda index: values[index].mean(), len(values))
    return {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}


def main(arguments: list[str] | None = None) -> int:
    """Print the correlations of all token methods; bad input gives one line and exit code 2."""
    options = parser("python -m benchmarks.shapley_tokens",
                     "Scores of tokens against their exact Shapley values.", 12, 3,
                     "write the table here, and the sets' to NAME-sets.csv")
    options.add_argument("--sets", nargs="+", metavar="SET", default=BUNDLED,
                         help=f"of {', '.join(map(repr, SETS))} (default: the first six)")
    return run_command(_print_correlations, options.parse_args(arguments))


def _print_correlations(options) -> None:
    """Print both tables, and save them where wanted."""
    check_whole("seeds", options.seeds)
    rows = measure(options.model, options.sets, n=options.n, seeds=range(options.seeds))
    show(interactions(rows), options.csv and options.csv.with_name(f"{options.csv.stem}-sets.csv"),
         "Do single effects sum to more than the joint one (ratio above 1: needed jointly), or to less (redundant)?")
    show(summarise(rows), options.csv,
         "Correlation with exact Shapley values, means over prompts; gim_ahead: GIM's Pearson minus the method's.")


if __name__ == "__main__":
    sys.exit(main())
