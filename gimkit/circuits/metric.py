"""The metrics of a task, by name."""

from typing import Literal, get_args

from gimkit.errors import GimkitError
from gimkit.tasks.task import Task

Metric = Literal["logit", "probability", "kl", "kl-mean"]
SEQUENCES = "log-probability"  # what "logit" becomes where answers have several tokens
METRICS = {"logit": "logits", "probability": "probability", "kl": "nats", "kl-mean": "nats / |vocabulary|"}
UNITS = METRICS | {SEQUENCES: "nats"}
DIVERGENCES = ("kl", "kl-mean")  # from the clean run
assert get_args(Metric) == tuple(METRICS)


def metric_of(task: Task, metric: str) -> str:
    """The metric's name in results: "logit" is "log-probability" where the task's answers have several tokens.

    Raises:
        GimkitError: an unknown metric; a divergence, which compares one next token, with answers of several tokens.
    """
    if metric not in (*METRICS, *([SEQUENCES] if task.sequences else [])):
        raise GimkitError(f"unknown metric {metric!r}; use {', '.join(METRICS)}")
    if task.sequences and metric in DIVERGENCES:
        raise GimkitError(f"{metric} compares one next token, but {task.name} has answers of several tokens; use "
                          "metric logit (their log-probability) or probability")
    return SEQUENCES if task.sequences and metric == "logit" else metric


def check_slope(metric: str, method: str) -> None:
    """Refuse a divergence for a method that takes gradients at the clean run only, where its gradient is zero."""
    if metric in DIVERGENCES:
        raise GimkitError(f"the gradient of {metric} is zero at the clean run, the only place where {method} takes it; "
                          "use method ig-inputs or exact (nodes: nap-ig or exact), or another metric")
