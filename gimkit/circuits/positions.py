"""Scores of a model's nodes at each position of a prompt."""

import torch
from nnsight.intervention.envoy import Envoy

from gimkit.circuits.edges import AVERAGED
from gimkit.circuits.metric import Metric, check_slope, metric_of
from gimkit.circuits.nodes import at_clean_run, gradient_scores
from gimkit.errors import GimkitError, check_whole, require_finite
from gimkit.jvp.modes import by_backend
from gimkit.model.apply import check_unedited
from gimkit.model.architecture import architecture_of
from gimkit.rules import PLAIN, RULES, Rules, name_of, rules_of
from gimkit.tasks.task import Task, batches, check_one_token, check_task

METHODS = (*RULES, *(name for name in AVERAGED if name != "gp"), "nap-ig")
NO_FORWARD = "forward mode would need a row for each node at each position"


def position_scores(model: Envoy, task: Task, method: str | Rules = "gim", *, metric: Metric = "logit", steps: int = 5,
                    batch_size: int = 32, remote: bool | str = False) -> torch.Tensor:
    """Score every node at every position: `gimkit.score_nodes` before its sum over positions.

    >>> scores = gimkit.circuits.position_scores(model, task[:8])
    >>> scores.shape                                             # 26 nodes at 24 positions
    torch.Size([8, 26, 24])
    >>> torch.allclose(scores.sum(2), nodes.per_example[:8], atol=1e-4)
    True

    Positions after the answer's have 0.

    Args:
        model: an unedited nnsight model.
        task: a `gimkit.tasks.Task` of n prompt pairs, with answers of one token.
        method: any rules, "nap-ig", "ig-activations", or a method of `gimkit.score_edges` that averages gradients
            ("ig-inputs", "gim-ig", "clean-corrupted"): the scores of a node then add up to those of the edges that
            leave it.
        metric: as in `gimkit.score_nodes`.
        steps: points of the averaged gradients.
        batch_size: as in `gimkit.score_nodes`.
        remote: as in `gimkit.attribute`.

    Returns:
        [n, nodes, seq] in units of the metric, nodes in the order of `gimkit.score_nodes`.

    Raises:
        GimkitError: a method that is not one of these, answers of several tokens, a divergence's gradient at the clean
            run, an edited model, a server without gradients, NaN.
    """
    check_task(model, task)
    if not isinstance(method, Rules) and method not in METHODS:
        raise GimkitError(f"no scores by position for method {method!r}; use a gimkit.Rules, or one of "
                          f"{', '.join(METHODS)}")
    check_one_token(task, "position_scores")
    steps, batch_size = check_whole("steps", steps), check_whole("batch_size", batch_size)
    metric, label, parts = metric_of(task, metric), name_of(method), architecture_of(model)
    check_unedited(model)
    if at_clean_run(method, steps):
        check_slope(metric, label)
    rules = AVERAGED.get(method, PLAIN) if method in (*AVERAGED, "nap-ig") else rules_of(method)

    def reverse() -> torch.Tensor:
        pairs = batches(task, batch_size, label, metric)
        return gradient_scores(model, parts, pairs, method, steps, remote, rules=rules, by_position=True)

    scores = by_backend(model, "auto", reverse, NO_FORWARD, remote)
    require_finite(scores)
    return scores
