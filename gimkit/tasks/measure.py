"""How well a model does a task."""

import torch

from gimkit.interventions.metric import metric_values
from gimkit.remote.trace import steady
from gimkit.tasks.task import Task, answers_of


def metric(model, task: Task) -> torch.Tensor:
    """logsumexp(good) - logsumexp(bad) of the logits behind each clean prompt, [n].

    `model`: an nnsight model or a transformers one.
    """
    model = getattr(model, "_module", model)
    device = next(model.parameters()).device
    with steady(model, gradients=False):
        logits = model(input_ids=task.clean.to(device), attention_mask=task.mask.to(device)).logits
    return metric_values("logit", logits, *answers_of(task))[0].cpu()
