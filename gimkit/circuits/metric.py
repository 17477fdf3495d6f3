"""What is scored: the task's metric by name."""

from gimkit.errors import GimkitError

SEQUENCES = "log-probability"  # what "logit" becomes where answers have several tokens
METRICS = {"logit": "logits", "probability": "probability", "kl": "nats", "kl-mean": "nats / |vocabulary|"}
UNITS = METRICS | {SEQUENCES: "nats"}
DIVERGENCES = ("kl", "kl-mean")  # from the clean run


def metric_of(task, metric: str) -> str:
    """The metric's name in results: "logit" is "log-probability" where the task's answers have several tokens.

    Raises GimkitError for an unknown metric, and for a divergence, which has one next token, with such answers.
    """
    if metric not in (*METRICS, *([SEQUENCES] if task.sequences else [])):
        raise GimkitError(f"unknown metric {metric!r}; use {', '.join(METRICS)}")
    if task.sequences and metric in DIVERGENCES:
        raise GimkitError(f"{metric} compares one next token, but {task.name} has answers of several tokens; use "
                          "metric logit (their log-probability) or probability")
    return SEQUENCES if task.sequences and metric == "logit" else metric


def check_slope(metric: str, method: str) -> None:
    """Refuse a divergence to a method that takes gradients at the clean run only: it is least there."""
    if metric in DIVERGENCES:
        raise GimkitError(f"the gradient of {metric} is zero at the clean run, the only place where {method} takes it; "
                          "use method ig-inputs or exact (nodes: nap-ig or exact), or another metric")
