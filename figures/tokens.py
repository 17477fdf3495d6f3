"""GIM's figures of token faithfulness: every method, the rule ladder, the temperatures."""

from dataclasses import replace

import pandas
import torch
from tqdm.auto import tqdm

import gimkit
from benchmarks.ladder import LADDER
from figures import papers
from figures.parts import Request
from gimkit.rules import GIM
from gimkit.statistics import bootstrap
from gimkit.tokens import TokenScores

TEMPERATURES = (1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0, 100.0)
MEASURES = ("comprehensiveness", "sufficiency")
TABLE = ("gradient", "ig-20", "deeplift", "transformer-lrp", "attnlrp", "pattern-difference", "relp", "gim",
         "occlusion", "lime", "kernelshap", "random", "gim, shuffled")
POOLED = "all tasks"


def _options_of(method: str) -> dict:
    """The arguments of `gimkit.attribute` for a label.

    >>> _options_of("ig-20"), _options_of("T=5")["method"].temperature
    ({'method': 'ig', 'steps': 20}, 5.0)
    """
    if method.startswith("T="):
        return {"method": GIM._replace(temperature=float(method[2:]))}
    name, _, steps = method.partition("ig-")
    return {"method": "ig", "steps": int(steps)} if steps else {"method": LADDER.get(method, method)}


def at_temperature(temperature: float) -> str:
    """The label of freeze and split at a temperature; two of these are rows of the ladder, with their own names.

    >>> at_temperature(1.0), at_temperature(2.0), at_temperature(5.0)
    ('freeze+split', 'gim', 'T=5')
    """
    return {1.0: "freeze+split", 2.0: "gim"}.get(temperature, f"T={temperature:g}")


def prompts_of(model, task) -> tuple[list[torch.Tensor], list[int]]:
    """Each clean prompt's ids, and the right answer to which the model gives the highest logit.

    >>> prompts, targets = prompts_of(model, gimkit.tasks.greater_than(model, n=8))
    >>> len(prompts), len(targets)
    (8, 8)
    """
    with torch.no_grad(), model.trace(input_ids=task.clean, use_cache=False):
        logits = model.output.logits[torch.arange(len(task)), task.last].cpu().save()
    targets = [max(good, key=lambda answer, row=row: float(row[answer])) for row, good in zip(logits, task.good)]
    return [row[real] for row, real in zip(task.clean, task.mask)], targets


def measure(model, task, method: str, seed: int = 0) -> pandas.DataFrame:
    """A row for each prompt and scale, as in `TokenFaithfulness.frame`."""
    prompts, targets = prompts_of(model, task)
    name, _, shuffled = method.partition(", ")
    seeds = range(seed * len(task), (seed + 1) * len(task))
    scores = [gimkit.attribute(model, *question, **_options_of(name), seed=own)
              for own, *question in zip(seeds, prompts, targets)]
    if shuffled:
        scores = [shuffled_scores(one, own) for one, own in zip(scores, seeds)]
    return gimkit.tokens.token_faithfulness(model, prompts, scores, targets).frame().assign(method=method)


def shuffled_scores(scores: TokenScores, seed: int) -> TokenScores:
    """The scores in a random order: a control, which must do no better than chance.

    >>> scores = gimkit.attribute(model, "Mary drove to the farm", "with")
    >>> sorted(shuffled_scores(scores, 0).scores.tolist()) == sorted(scores.scores.tolist())
    True
    """
    order = torch.randperm(len(scores.scores), generator=torch.Generator().manual_seed(seed))
    return replace(scores, scores=scores.scores[order])


def measured(request: Request, methods) -> pandas.DataFrame:
    """A row for each task, method and prompt, on the logit scale; stored parts are read back."""
    work = [(task, method) for task in request.chosen() for method in methods]
    found = []
    for name, method in tqdm(work, desc=f"token faithfulness of {request.label}", delay=2, leave=False):
        rows = request.part("tokens", request.task(name), method, lambda name=name, method=method:
                            measure(request.model, request.task(name), method, request.seed))
        found.append(rows[rows.scale == "logit"].assign(task=name))
    return pandas.concat(found, ignore_index=True)


def intervals(rows: pandas.DataFrame, minus: str | None = None) -> pandas.DataFrame:
    """The mean of each measure by method and task, and over all prompts, with 95% bootstrap intervals over prompts.

    Prompts whose logit is not above 0 have no value and are left out; column n has the number of the others.

    Args:
        rows: columns method, task, example and the two measures.
        minus: a method whose value on the same prompt is subtracted first.
    Returns:
        Columns method, task, measure, value, low, high, n.
    """
    rows = pandas.concat([rows, rows.assign(task=POOLED, example=rows.task + rows.example.astype(str))])
    rows = rows.assign(example=rows.example.astype(str)).set_index(["task", "example"])
    found = []
    for method in rows.method.unique():
        for task in rows.index.unique("task"):
            for measure in MEASURES:
                values = rows[rows.method == method].loc[task, measure]
                if minus is not None:
                    values = values - rows[rows.method == minus].loc[task, measure]
                values = values.dropna().to_numpy()
                mean = bootstrap(lambda index, v=values: v[index].mean(), len(values)) if len(values) else (
                    float("nan"),) * 3
                found.append((method, task, measure, *mean, len(values)))
    return pandas.DataFrame(found, columns=["method", "task", "measure", "value", "low", "high", "n"])


def _best(frame: pandas.DataFrame, measure: str, best) -> str:
    """The method with the best mean over all tasks, as text."""
    pooled = frame[(frame.task == POOLED) & (frame.measure == measure)].dropna(subset="value")
    if pooled.empty:
        return f"{measure}: undefined everywhere"
    row = pooled.loc[best(pooled.value)]
    return f"{measure}: {row.method} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"


def _extremes(frame: pandas.DataFrame) -> str:
    """The best methods by both measures, as text."""
    return "; ".join((_best(frame, "comprehensiveness", pandas.Series.idxmax),
                      _best(frame, "sufficiency", pandas.Series.idxmin)))


def temperature_sweep(request: Request):
    """Faithfulness at every temperature, norms frozen and products split: (figure, table, alternative text)."""
    frame = intervals(measured(request, [at_temperature(t) for t in TEMPERATURES]))
    frame.insert(0, "temperature", frame.method.map({at_temperature(t): t for t in TEMPERATURES}))
    alt = (f"Lines of comprehensiveness (high is good) and sufficiency (low is good) over the softmax temperature, "
           f"{request.label}, a line per task and their mean. Best over all tasks, {_extremes(frame)}.")
    return papers.temperature_sweep(frame, POOLED), frame, alt


def ablation_ladder(request: Request):
    """Faithfulness of each rule subset minus that of gradient x input: (figure, table, alternative text)."""
    frame = intervals(measured(request, LADDER), minus="gradient").query("method != 'gradient'")
    alt = (f"Dots: comprehensiveness and sufficiency of token scores minus those of gradient x input, for seven sets "
           f"of rules on {request.label}, a dot per task and their mean with its interval. Best over all tasks, "
           f"{_extremes(frame)}.")
    return papers.ladder(frame, POOLED), frame, alt


def token_faithfulness(request: Request):
    """The table of methods and tasks: (figure, table, alternative text)."""
    frame = intervals(measured(request, TABLE))
    alt = (f"Two tables, comprehensiveness (high is good) and sufficiency (low is good), methods by tasks, "
           f"{request.label}. Best over all tasks, {_extremes(frame)}.")
    return papers.faithfulness_table(frame, POOLED), frame, alt
