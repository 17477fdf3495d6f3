"""GIM's first version: the faithfulness of residual streams, layer by layer."""

import pandas
from tqdm.auto import tqdm

from figures import papers
from figures.parts import Request
from figures.tokens import MEASURES, POOLED, intervals, prompts_of
from gimkit.tokens.layers import layer_faithfulness, layer_scores

METHODS = {"gim": "GIM", "pattern-difference": "AtP*", "gradient": "gradient", "ig": "IG, 20 steps"}


def measure(model, task, method: str) -> pandas.DataFrame:
    """A row for each layer and prompt, on the logit scale."""
    prompts, targets = prompts_of(model, task)
    scores = [layer_scores(model, *question, method=method) for question in zip(prompts, targets)]
    layers = layer_faithfulness(model, prompts, scores, targets)
    return pandas.concat([layer.frame().query("scale == 'logit'").assign(layer=number, method=method)
                          for number, layer in enumerate(layers)], ignore_index=True)


def layers(request: Request):
    """Both measures over layers, a line for each method: (figure, table, alternative text)."""
    work, found = [(task, method) for task in request.chosen() for method in METHODS], []
    for name, method in tqdm(work, desc=f"layers of {request.label}", delay=2, leave=False):
        rows = request.part("layers", request.task(name), method, lambda name=name, method=method:
                            measure(request.model, request.task(name), method))
        found.append(rows.assign(task=name))
    rows = pandas.concat(found, ignore_index=True)
    frame = pandas.concat([intervals(part).assign(layer=layer) for layer, part in rows.groupby("layer")])
    frame["method"] = frame.method.map(METHODS)
    means = frame[frame.task == POOLED].groupby(["measure", "method"], sort=False).value.mean()
    listed = "; ".join(f"{measure}: " + ", ".join(f"{method} {value:.3f}" for method, value in means[measure].items())
                       for measure in MEASURES)
    alt = (f"Lines of comprehensiveness (high is good) and sufficiency (low is good) of residual streams over layers, "
           f"{request.label}, a line per method with intervals over prompts. Means over layers, {listed}.")
    return papers.layers(frame[frame.task == POOLED]), frame, alt
