"""Comprehensiveness and sufficiency: do token scores find the tokens that the answer depends on?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy
import pandas
import torch
from nnsight.intervention.envoy import Envoy
from tqdm.auto import tqdm

from gimkit.errors import GimkitError, check_flag, require_finite
from gimkit.model.apply import check_unedited
from gimkit.model.prompt import Answer, Prompt, PromptLike, check_metric, free_mask, inner_positions, read_prompt
from gimkit.results import Result
from gimkit.statistics import Interval, bootstrap
from gimkit.tokens import TokenScores
from gimkit.tokens.attribute import tokens_of
from gimkit.tokens.masking import masked_values

MOST_REMOVED = 50
SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)
Scale = Literal["logit", "probability"]
SCALES: tuple[Scale, ...] = get_args(Scale)


@dataclass(frozen=True, eq=False)
class TokenFaithfulness(Result):
    """What the answer loses as the baseline replaces tokens in the order of their scores.

    >>> pair = task[0]
    >>> scores = gimkit.attribute(model, pair.clean, pair.answer)
    >>> result = gimkit.tokens.token_faithfulness(model, [pair.clean], [scores], [pair.answer])
    >>> result.full.shape, result.without_best.shape, result.without_rest.shape
    (torch.Size([1, 2]), torch.Size([1, 50, 2]), torch.Size([1, 5, 2]))

    Attributes:
        method: the scores' method, or "own scores".
        full: [n, 2], the answer's logit and probability on the whole prompt.
        without_best: [n, 50, 2], without the k tokens of highest score, k = 1 ... 50; NaN where the prompt has fewer.
        without_rest: [n, 5, 2], without the int(r n) tokens of lowest score, r in SHARES.
    """

    method: str
    full: torch.Tensor
    without_best: torch.Tensor
    without_rest: torch.Tensor

    def comprehensiveness(self, scale: Scale = "logit", zero_filled: bool = False) -> torch.Tensor:
        """Mean over k of [f(x) - f(x without its k best tokens)] / f(x), [n]; high is good.

        Args:
            scale: f is the answer's "logit" or its "probability". NaN where the logit is not above 0.
            zero_filled: divide by 50 even where the prompt has fewer tokens, as the paper's code does; short prompts
                then score low with every method.
        """
        lost = self._lost(self.without_best, scale)
        if not check_flag("zero_filled", zero_filled):
            return lost.nanmean(1)
        return torch.where(lost.isnan().all(1), torch.nan, lost.nansum(1) / MOST_REMOVED)

    def sufficiency(self, scale: Scale = "logit") -> torch.Tensor:
        """Mean over r of [f(x) - f(x without its int(r n) worst tokens)] / f(x), [n]; low is good.

        Args:
            scale: as in `comprehensiveness`.
        """
        return self._lost(self.without_rest, scale).mean(1)

    def _lost(self, values: torch.Tensor, scale: Scale) -> torch.Tensor:
        if scale not in SCALES:
            raise GimkitError(f"unknown scale {scale!r}; use {' or '.join(SCALES)}")
        full = self.full[:, SCALES.index(scale), None]
        return torch.where(full > 0, (full - values[..., SCALES.index(scale)]) / full, torch.nan)

    def frame(self) -> pandas.DataFrame:
        """A tidy table with a row per example and scale.

        Columns: example, method, scale, full, comprehensiveness, comprehensiveness_zero_filled, sufficiency.
        """
        return pandas.concat([pandas.DataFrame({
            "example": range(len(self.full)), "method": self.method, "scale": scale, "full": self.full[:, column],
            "comprehensiveness": self.comprehensiveness(scale),
            "comprehensiveness_zero_filled": self.comprehensiveness(scale, zero_filled=True),
            "sufficiency": self.sufficiency(scale)}) for column, scale in enumerate(SCALES)], ignore_index=True)

    def summary(self, **options: Any) -> pandas.DataFrame:
        """Means with bootstrap intervals over examples.

        Columns: method, scale, measure, value, low, high, n, undefined (how many examples are left out of the mean
        because the answer's logit is not above 0).

        Args:
            options: level, resamples and seed of `gimkit.statistics.bootstrap`.
        """
        rows, table = [], self.frame()
        for scale in SCALES:
            for measure in ("comprehensiveness", "comprehensiveness_zero_filled", "sufficiency"):
                values = table[table.scale == scale][measure].to_numpy()
                kept = values[~pandas.isna(values)]
                interval = _mean(kept, **options) if len(kept) else (math.nan,) * 3
                rows.append((self.method, scale, measure, *interval, len(kept), len(values) - len(kept)))
        return pandas.DataFrame(rows, columns=["method", "scale", "measure", "value", "low", "high", "n", "undefined"])

    def __str__(self) -> str:
        return self.summary().to_string(index=False, float_format="{:.3f}".format)


def _mean(values: numpy.ndarray, **options: Any) -> Interval:
    """The mean of values [n] with its interval."""
    return bootstrap(lambda index: values[index].mean(), len(values), **options)


def token_faithfulness(model: Envoy, prompts: Sequence[PromptLike], scores: Sequence[TokenScores | torch.Tensor],
                       targets: Sequence[Answer | None] | None = None, *, baseline: str | int | None = None,
                       glue: str | None = None, remote: bool | str = False) -> TokenFaithfulness:
    """Replace the tokens of highest score, and those of lowest score, and measure what the answer loses.

    >>> prompts, targets = [pair.clean for pair in task.pairs[:8]], [pair.answer for pair in task.pairs[:8]]
    >>> scores = [gimkit.attribute(model, prompt, target) for prompt, target in zip(prompts, targets)]
    >>> result = gimkit.tokens.token_faithfulness(model, prompts, scores, targets)
    >>> result.comprehensiveness().shape, result.sufficiency("probability").shape
    (torch.Size([8]), torch.Size([8]))

    The first and the last token of a prompt are never replaced. A prompt takes one batch of at most 56 rows, several
    batches where it is long.

    Args:
        model, baseline, glue, remote: as in `gimkit.attribute`.
        prompts: n prompts, each as in `gimkit.attribute`.
        scores: n `TokenScores`, or tensors [seq]. Ranked by signed score, high ones first, ties in order of position.
        targets: n answers, no pairs and no functions; None: the model's own predictions. The "logit" of an answer of
            several tokens is its log-probability, never above 0, so its loss is NaN: read the scale "probability".

    Returns:
        The `TokenFaithfulness`, with .frame(), .summary(), .comprehensiveness() and .sufficiency().

    Raises:
        GimkitError: with the prompt's number: one of fewer than 3 tokens or longer than the context; scores of another
            prompt or length; NaN.

    Source:
        arXiv 2505.17630's evaluation code (k = 1 ... 50; the loss of the raw target logit divided by itself). Two
        differences: prompts shorter than 50 tokens are averaged over the k that exist (`zero_filled=True` gives the
        paper's values); where the target's logit is not above 0, so that a loss relative to it has no meaning, the
        example is NaN and counted (the paper takes right answers only and divides by any logit).
    """
    check_unedited(model)
    examples = matched(prompts, scores, targets)
    full, best, rest = [], [], []
    for number, (prompt, score, target) in enumerate(tqdm(examples, desc="faithfulness", delay=2, leave=False)):
        try:
            encoded, ranking = _ranked(model, prompt, score, target, baseline, glue)
        except GimkitError as error:
            raise GimkitError(f"prompt {number}: {error}") from None
        removed = removals(ranking)
        keep = torch.stack([~free_mask(len(encoded.ids), row) if row else torch.ones_like(encoded.free)
                            for row in removed])
        values = masked_values(model, encoded, keep, remote)[0]  # the prompt, then without the best, then the rest
        require_finite(values, f"the model's predictions for prompt {number}")
        full.append(values[0])
        rest.append(values[-len(SHARES):])
        best.append(torch.full((MOST_REMOVED, 2), torch.nan, dtype=values.dtype))
        best[-1][:len(removed) - 1 - len(SHARES)] = values[1:-len(SHARES)]
    labels = {score.method for _, score, _ in examples if isinstance(score, TokenScores)}
    return TokenFaithfulness(labels.pop() if len(labels) == 1 else "own scores", torch.stack(full), torch.stack(best),
                             torch.stack(rest))


def matched(prompts: Sequence, scores: Sequence, targets: Sequence | None) -> list[tuple]:
    """(prompt, scores, target) of each example; refused unless there are as many of each, and at least one."""
    prompts, scores = list(prompts), list(scores)
    targets = [None] * len(prompts) if targets is None else list(targets)
    if not prompts or not len(prompts) == len(scores) == len(targets):
        raise GimkitError(f"give as many scores and targets as prompts, at least one: there are {len(prompts)} "
                          f"prompts, {len(scores)} scores, {len(targets)} targets")
    return list(zip(prompts, scores, targets))


def removals(ranking: list[int]) -> list[list[int]]:
    """Which positions each variant replaces: none; the k best, for each k; the int(r n) worst, for each r in SHARES.

    >>> removals([3, 1, 2])
    [[], [3], [3, 1], [3, 1, 2], [2], [1, 2], [1, 2], [1, 2], [1, 2]]
    """
    best = [ranking[:k] for k in range(min(MOST_REMOVED, len(ranking)) + 1)]
    return best + [ranking[len(ranking) - int(share * len(ranking)):] for share in SHARES]


def _ranked(model: Envoy, prompt: PromptLike, score: TokenScores | torch.Tensor, target: Answer | None,
            baseline: str | int | None, glue: str | None) -> tuple[Prompt, list[int]]:
    """The encoded prompt, and its positions by falling score without the first and the last."""
    if isinstance(target, tuple | list):
        raise GimkitError("the target is one answer here: a loss relative to a difference of two has no meaning")
    encoded = read_prompt(model, prompt, target, baseline, glue=glue)
    check_metric(encoded, "token_faithfulness", "logit", "log-probability")
    inner = inner_positions(len(encoded.ids))
    values = torch.as_tensor(score.scores if isinstance(score, TokenScores) else score)
    if values.shape != encoded.ids.shape:
        raise GimkitError(f"it has {len(encoded.ids)} tokens, but the scores have the shape {tuple(values.shape)}")
    if isinstance(score, TokenScores) and score.tokens != tokens_of(model, encoded.ids):
        raise GimkitError(f"the scores are of another prompt, {' '.join(score.tokens)!r}; give as many scores as "
                          "prompts, in the same order")
    require_finite(values)
    return encoded, sorted(inner, key=lambda position: -float(values[position]))
