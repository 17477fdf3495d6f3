"""What a model can do: the numbers of the model cards, `python -m gimkit measure mini-gpt2`."""

import pandas as pd
import torch

from gimkit import tasks
from gimkit.circuits.scores import answers_of
from gimkit.circuits.traced import metric_values
from gimkit.remote.traces import steady
from gimkit.tasks import Task


def metric(model, task: Task) -> torch.Tensor:
    """logsumexp(good) - logsumexp(bad) of the logits behind each clean prompt, [n].

    `model`: an nnsight model or a transformers one.
    """
    model = getattr(model, "_module", model)
    device = next(model.parameters()).device
    with steady(model, gradients=False):
        logits = model(input_ids=task.clean.to(device), attention_mask=task.mask.to(device)).logits
    return metric_values("logit", logits, *answers_of(task))[0].cpu()


def examined(model, n: int = 1000, seed: int = 1000) -> dict[str, Task]:
    """The tasks of the model cards: held-out pairs of names wherever there are names."""
    held = {"names": "held-out"}
    return {
        "ioi, trained templates": tasks.ioi(model, n, seed, templates="trained", **held),
        "ioi, held-out templates": tasks.ioi(model, n, seed, templates="held-out", **held),
        "ioi_twice, trained templates": tasks.ioi_twice(model, n, seed, templates="trained", **held),
        "ioi_twice, held-out templates": tasks.ioi_twice(model, n, seed, templates="held-out", **held),
        "odd_one_out, 2 people": tasks.odd_one_out(model, n, seed, people=2, **held),
        "odd_one_out, 3 people": tasks.odd_one_out(model, n, seed, people=3, **held),
        "odd_one_out, 4 people": tasks.odd_one_out(model, n, seed, people=4, **held),
        "induction, twice": tasks.induction(model, n, seed),
        "induction, three times": tasks.induction(model, n, seed, times=3),
        "greater_than": tasks.greater_than(model, n, seed),
        "agreement": tasks.agreement(model, n, seed),
        "pronoun": tasks.pronoun(model, n, seed),
        "capital": tasks.capital(model, n, seed),
        "hypernymy": tasks.hypernymy(model, n, seed),
    }


def accuracy(model, n: int = 1000, seed: int = 1000) -> pd.DataFrame:
    """Accuracy and mean logit difference of each task, on pairs of names that the training held out.

    >>> table = gimkit.models.accuracy(model, n=8)            # a row per task
    >>> table.shape
    (14, 4)

    `accuracy`: share of prompts whose metric is positive. `model`: an nnsight model with its tokenizer.
    """
    rows = []
    for name, task in examined(model, n, seed).items():
        values = metric(model, task)
        rows.append((name, (values > 0).float().mean().item(), values.mean().item(), len(task)))
    return pd.DataFrame(rows, columns=["task", "accuracy", "logit_difference", "prompts"])
