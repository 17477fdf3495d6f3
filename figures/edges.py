"""EAP-GP's picture of saturation: the metric and its gradient on the straight path."""

import pandas
import torch

from figures import papers
from figures.parts import Request
from gimkit.interventions.token_scores import answer_logits, explained_value
from gimkit.interventions.weights import leaf_of
from gimkit.model.architecture import architecture_of, unembedding_of

POINTS = 41


def path(model, task) -> pandas.DataFrame:
    """Metric and gradient norm at 41 points from corrupt to clean embeddings, a row for each prompt and point.

    >>> path(model, task[:1]).shape
    (41, 4)

    The metric is the first good answer's logit minus the first bad one's.

    Args:
        model: an nnsight model.
        task: a task.
    Returns:
        Columns example, share (0 corrupt, 1 clean), metric and gradient (the norm of the metric's gradient).
    """
    embedding, unembedding, found = architecture_of(model).embedding, unembedding_of(model), []
    for example, (clean, corrupt, real) in enumerate(zip(task.clean, task.corrupt, task.mask)):
        answers = [task.good[example][0], task.bad[example][0]]
        with model.trace(input_ids=clean[real][None].repeat(POINTS, 1), use_cache=False):
            values = _along_path(model, embedding, unembedding, corrupt[real][None], answers).save()
        found.append(pandas.DataFrame({"example": example, "share": torch.linspace(0, 1, POINTS).double(),
                                       "metric": values[:, 0].double(), "gradient": values[:, 1].double()}))
    return pandas.concat(found, ignore_index=True)


def _along_path(model, embedding: str, unembedding, corrupt: torch.Tensor, answers: list):
    """Logit difference and norm of its gradient at each row's point from corrupt to clean embeddings, [rows, 2].

    The rows are copies of the clean prompt; row 0 becomes the corrupt one, the last stays. corrupt: [1, seq] ids.
    """
    module = model.get(embedding)
    start = module(corrupt.to(model.device)).detach()
    end = module.output.detach()
    shares = torch.linspace(0, 1, len(end), device=end.device, dtype=end.dtype)[:, None, None]
    leaf = leaf_of(model, start + shares * (end - start))
    module.output = leaf
    value, _ = explained_value(answer_logits(model, unembedding, answers), answers)
    gradient = torch.autograd.grad(value.sum(), leaf)[0]
    return torch.stack([value.detach(), gradient.flatten(1).norm(dim=1)], 1).cpu()


def saturation(request: Request):
    """The metric and its gradient along straight paths: (figure, table, alternative text)."""
    task = request.task(request.chosen(("ioi",))[0])
    frame = request.part("path", task, "straight", lambda: path(request.model, task))
    steepest = frame.groupby("example").gradient.idxmax()
    ends = frame[frame.share == 1].gradient.to_numpy() / frame.gradient[steepest].to_numpy()
    where = frame.share[steepest]
    alt = (f"Two panels along the straight path from corrupt to clean embeddings of {len(task)} prompts of "
           f"{task.name}, {request.label}: the logit difference, and the norm of its gradient, largest at "
           f"{where.min():.2f} to {where.max():.2f} of the way; at the clean end, where EAP takes it, it has "
           f"{ends.min():.0%} to {ends.max():.0%} of that.")
    return papers.saturation_path(frame), frame, alt
