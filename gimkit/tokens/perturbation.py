"""Token attribution by replacing tokens: occlusion, LIME, KernelSHAP; and random scores as a control."""

import math
from typing import Any, Literal, get_args

import torch
from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError
from gimkit.model.prompt import Prompt
from gimkit.remote.trace import seeded
from gimkit.tokens.masking import masked_values

Perturbation = Literal["occlusion", "lime", "kernelshap", "random"]
METHODS: tuple[Perturbation, ...] = get_args(Perturbation)
LIME_SAMPLES, SAMPLES_PER_TOKEN = 100, 3  # of LIME, and of KernelSHAP, as in GIM's evaluation


def perturbed(model: Envoy, prompt: Prompt, method: Perturbation, seed: int,
              remote: bool | str) -> tuple[torch.Tensor, list]:
    """Scores [seq] by one of METHODS, 0 where a token is not free, and the answers' ids.

    >>> prompt = gimkit.model.prompt.read_prompt(model, "Mary drove to the farm with John. John lent a map to", "Mary")
    >>> perturbed(model, prompt, "occlusion", 0, False)[0].shape             # a prompt of 14 tokens
    torch.Size([14])
    """
    free = prompt.free.nonzero().flatten()
    scores = torch.zeros(len(prompt.ids), dtype=torch.float64)
    if method == "occlusion":
        singles = torch.ones(1 + len(free), len(prompt.ids), dtype=torch.bool)
        singles[torch.arange(len(free)) + 1, free] = False
        values, answers = masked_values(model, prompt, singles, remote)
        scores[free] = values[0, 0] - values[1:, 0]
        return scores.float(), answers
    answers = prompt.answers
    if not answers:
        answers = masked_values(model, prompt, torch.ones(1, len(prompt.ids), dtype=torch.bool), remote)[1]
    with seeded(seed):
        if method == "random":
            scores[free] = torch.randn(len(free), dtype=torch.float64)
        else:
            scores[free] = _surrogate(model, prompt._replace(answers=answers), method, remote).double()
    return scores.float(), answers


def _surrogate(model: Envoy, prompt: Prompt, method: str, remote: bool | str) -> torch.Tensor:
    """The weights [free tokens] of captum's linear model, fitted to the target's value on random variants."""
    try:
        from captum.attr import KernelShap, Lime
    except ImportError:
        raise GimkitError(f"{method} needs captum: pip install captum scikit-learn") from None
    count = int(prompt.free.sum())
    if count < 2:
        raise GimkitError(f"{method} fits a line over several tokens, and here only {count} may be replaced; "
                          "use occlusion")

    def values(ids: torch.Tensor) -> torch.Tensor:
        return masked_values(model, prompt, ids == prompt.ids, remote)[0][:, 0]

    samples = LIME_SAMPLES if method == "lime" else SAMPLES_PER_TOKEN * len(prompt.ids)
    explainer = Lime(values, similarity_func=_closeness) if method == "lime" else KernelShap(values)
    # A token that is not free is its own baseline, so it does not matter which feature it belongs to.
    feature = (prompt.free.cumsum(0) - 1).clamp(min=0)
    baselines = torch.where(prompt.free, prompt.baseline, prompt.ids)
    weights = explainer.attribute(prompt.ids[None], baselines=baselines[None], feature_mask=feature[None],
                                  n_samples=samples, perturbations_per_eval=samples, return_input_shape=False)
    return weights.flatten()


def _closeness(_: Any, __: Any, kept: torch.Tensor, **___: Any) -> float:
    """The weight of a variant in LIME, from the cosine similarity of kept tokens, width 25, as LIME's text package."""
    distance = 100 * (1 - math.sqrt(float(kept.float().mean())))
    return math.sqrt(math.exp(-(distance / 25) ** 2))
