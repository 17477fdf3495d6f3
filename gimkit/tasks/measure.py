"""How well a model does a task."""

import torch

from gimkit.interventions.metric import metric_values
from gimkit.remote.trace import steady
from gimkit.tasks.task import Task, answer_rows, answers_of, per_pair


def metric(model, task: Task) -> torch.Tensor:
    """The task's metric behind each clean prompt, [n]: the logit difference, or of answers of several tokens that of
    their log-probabilities.

    `model`: an nnsight model or a transformers one.
    """
    model = getattr(model, "_module", model)
    rows, device = answer_rows(task), next(model.parameters()).device
    with steady(model, gradients=False):
        logits = model(input_ids=rows.clean.to(device), attention_mask=rows.mask.to(device)).logits
    return per_pair(task, metric_values("logit", logits, *answers_of(rows))[0].cpu())
