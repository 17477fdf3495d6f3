"""What is scored: the task's metric by name."""

from gimkit.errors import GimkitError

METRICS = {"logit": "logits", "probability": "probability", "kl": "nats", "kl-mean": "nats / |vocabulary|"}
DIVERGENCES = ("kl", "kl-mean")  # from the clean run


def check_metric(metric: str) -> None:
    """Refuse an unknown metric."""
    if metric not in tuple(METRICS):
        raise GimkitError(f"unknown metric {metric!r}; use {', '.join(METRICS)}")


def check_slope(metric: str, method: str) -> None:
    """Refuse a divergence to a method that takes gradients at the clean run only: it is least there."""
    if metric in DIVERGENCES:
        raise GimkitError(f"the gradient of {metric} is zero at the clean run, the only place where {method} takes it; "
                          "use method ig-inputs or exact (nodes: nap-ig or exact), or another metric")
