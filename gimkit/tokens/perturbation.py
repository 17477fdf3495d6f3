"""Token attribution by replacing tokens: leave-one-out, LIME, KernelSHAP; and random scores as a control."""

import math

import torch

from gimkit.errors import GimkitError
from gimkit.model.prompt import Question
from gimkit.remote.trace import seeded
from gimkit.tokens.masking import masked_values

METHODS = ("occlusion", "lime", "kernelshap", "random")
LIME_SAMPLES, SAMPLES_PER_TOKEN = 100, 3  # of LIME, and of KernelSHAP, as in GIM's evaluation


def perturbed(model, asked: Question, method: str, seed: int, remote: bool) -> tuple[torch.Tensor, list[int]]:
    """Scores [seq] by one of METHODS, 0 where a token is not free; and the answers' ids.

    >>> asked = gimkit.model.prompt.ask(model, "Mary drove to the farm with John. John lent a map to", "Mary")
    >>> perturbed(model, asked, "occlusion", 0, False)[0].shape              # a prompt of 14 tokens
    torch.Size([14])
    """
    free = asked.free.nonzero().flatten()
    scores = torch.zeros(len(asked.ids), dtype=torch.float64)
    if method == "occlusion":
        singles = torch.ones(1 + len(free), len(asked.ids), dtype=torch.bool)
        singles[torch.arange(len(free)) + 1, free] = False
        values, answers = masked_values(model, asked, singles, remote)
        scores[free] = values[0, 0] - values[1:, 0]
        return scores.float(), answers
    answers = asked.answers
    if not answers:
        answers = masked_values(model, asked, torch.ones(1, len(asked.ids), dtype=torch.bool), remote)[1]
    with seeded(seed):
        if method == "random":
            scores[free] = torch.randn(len(free), dtype=torch.float64)
        else:
            scores[free] = _surrogate(model, asked._replace(answers=answers), method, remote).double()
    return scores.float(), answers


def _surrogate(model, asked: Question, method: str, remote: bool) -> torch.Tensor:
    """The weights [free tokens] of captum's linear model, fitted to the answer's logit of random variants."""
    try:
        from captum.attr import KernelShap, Lime
    except ImportError:
        raise GimkitError(f"{method} needs captum: pip install captum scikit-learn") from None
    count = int(asked.free.sum())
    if count < 2:
        raise GimkitError(f"{method} fits a line over several tokens, and here only {count} may be replaced; "
                          "use occlusion")

    def values(ids: torch.Tensor) -> torch.Tensor:
        return masked_values(model, asked, ids == asked.ids, remote)[0][:, 0]

    samples = LIME_SAMPLES if method == "lime" else SAMPLES_PER_TOKEN * len(asked.ids)
    explainer = Lime(values, similarity_func=_closeness) if method == "lime" else KernelShap(values)
    feature = (asked.free.cumsum(0) - 1).clamp(min=0)  # a fixed token is its own baseline, so its feature is no matter
    neutral = torch.where(asked.free, asked.neutral, asked.ids)
    weights = explainer.attribute(asked.ids[None], baselines=neutral[None], feature_mask=feature[None],
                                  n_samples=samples, perturbations_per_eval=samples, return_input_shape=False)
    return weights.flatten()


def _closeness(_, __, kept: torch.Tensor, **___) -> float:
    """The weight of a variant in LIME: as the authors' package for texts, by the cosine of kept tokens, width 25."""
    distance = 100 * (1 - math.sqrt(float(kept.float().mean())))
    return math.sqrt(math.exp(-(distance / 25) ** 2))
