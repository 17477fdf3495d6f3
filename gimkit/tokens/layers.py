"""Which positions of the residual stream the answer depends on at each layer, and whether scores find them."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from nnsight.intervention.envoy import Envoy
from tqdm.auto import tqdm

from gimkit.errors import GimkitError, check_whole, require_finite
from gimkit.interventions.layer_scores import (
    integrated_stream_scores,
    pattern_stream_scores,
    replaced_values,
    stream_scores,
)
from gimkit.interventions.token_scores import last_values
from gimkit.model.apply import apply, check_differentiable, check_unedited
from gimkit.model.architecture import architecture_of, unembedding_of
from gimkit.model.prompt import Answer, Prompt, PromptLike, Target, check_metric, inner_positions, read_prompt
from gimkit.remote import in_trace
from gimkit.rules import Preset, rules_of
from gimkit.tokens.faithfulness import MOST_REMOVED, TokenFaithfulness, matched, removals

MOST_TOKENS = 2**13  # of one forward pass
LayerMethod = Literal["ig", "pattern-difference", Preset]
METHODS: tuple[LayerMethod, ...] = get_args(LayerMethod)


def layer_scores(model: Envoy, prompt: PromptLike, target: Target = None, *, method: LayerMethod = "gim",
                 steps: int = 20, glue: str | None = None, remote: bool | str = False) -> torch.Tensor:
    """Score every layer's residual stream at every position by how much it speaks for a target token.

    >>> layer_scores(model, "Mary drove to the farm with John. John lent a map to", "Mary").shape
    torch.Size([5, 14])

    A node is the input x of a block at one position. Its score is (x - mean of x over positions) . gradient of the
    target's logit.

    Args:
        model, prompt, target, glue, remote: as in `gimkit.attribute`; an answer of several tokens is refused.
        method: a preset of `gimkit.RULES` ("gim", "gradient", ...): one forward and one backward pass for all layers.
            Two others take a pass per layer: "ig" averages gradients over `steps` midpoints between the mean and x, at
            all positions together; "pattern-difference" takes the gradient to the scores of later attention layers as
            (s - s') times the gradient to the pattern s, where s' is the pattern with all positions of this layer at
            the mean.
        steps: midpoints of "ig".

    Returns:
        Scores [layers, seq], in logits.

    Raises:
        GimkitError: an unknown method, a model with rules, NaN.

    Source:
        arXiv 2505.17630, first version, the layer experiment (`evaluate_layers.py`; IG with 50 steps). What it calls
        "AtP*" is this replacement alone, not the method of arXiv 2403.00745. It does not state which run gives s'; we
        take the one with all positions at their mean.
    """
    if method not in METHODS:
        raise GimkitError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")
    steps = check_whole("steps", steps)
    check_unedited(model)
    encoded = read_prompt(model, prompt, target, baseline=0, glue=glue)  # no token is replaced, so any baseline will do
    check_metric(encoded, "layer_scores", "logit", "function")
    parts, answers = architecture_of(model).blocks, encoded.answers
    blocks, attentions = [block.path for block in parts], [block.attention for block in parts]
    if method in ("ig", "pattern-difference"):
        check_differentiable(model, architecture_of(model))
        found, rows = [], encoded.ids[None].repeat(steps if method == "ig" else 2, 1)
        for layer, path in enumerate(blocks):
            body, further = (integrated_stream_scores, ()) if method == "ig" else (
                pattern_stream_scores, (attentions[layer:],))
            scores, ids = in_trace(model, rows, body, unembedding_of(model), path, *further, answers, remote=remote)
            answers = ids or answers  # a target that is a function has no ids
            found.append(scores)
        scores = torch.stack(found)
    else:
        edited = apply(model, rules_of(method))
        scores, _ = in_trace(edited, encoded.ids[None], stream_scores, unembedding_of(model), blocks, answers,
                             remote=remote)
    require_finite(scores)
    return scores


def layer_faithfulness(model: Envoy, prompts: Sequence[PromptLike], scores: Sequence[torch.Tensor],
                       targets: Sequence[Answer | None] | None = None, *, glue: str | None = None,
                       remote: bool | str = False) -> list[TokenFaithfulness]:
    """Comprehensiveness and sufficiency of the positions that scores rank, one result per layer.

    >>> prompt, target = "Mary drove to the farm with John. John lent a map to", "Mary"
    >>> layers = layer_faithfulness(model, [prompt], [layer_scores(model, prompt, target)], [target])
    >>> len(layers), layers[0].comprehensiveness().shape
    (5, torch.Size([1]))

    As `gimkit.tokens.token_faithfulness`, but what is replaced is the residual stream at a position of this layer, by
    the mean over positions.

    Args:
        model, prompts, targets, glue, remote: as in `gimkit.tokens.token_faithfulness`.
        scores: n tensors [layers, seq].

    Returns:
        A `TokenFaithfulness` for each layer.

    Raises:
        GimkitError: scores of another shape or with NaN, a target that is not one token, a prompt of fewer than 3
            tokens, NaN.

    Source:
        arXiv 2505.17630, first version, the layer experiment.
    """
    check_unedited(model)
    blocks = [block.path for block in architecture_of(model).blocks]
    full, best, rest = [], [], []  # a row per prompt, each [layers, removed, 2]
    examples = matched(prompts, scores, targets)
    for number, (prompt, ranked, target) in enumerate(tqdm(examples, desc="layers", delay=2, leave=False)):
        encoded = read_prompt(model, prompt, target, baseline=0, glue=glue)
        check_metric(encoded, "layer_faithfulness", "logit")
        length, ranked = len(encoded.ids), torch.as_tensor(ranked)
        require_finite(ranked, f"prompt {number}: the scores")
        if ranked.shape != (len(blocks), length):
            raise GimkitError(f"prompt {number}: scores have the shape {tuple(ranked.shape)}, not {len(blocks)} layers "
                              f"x {length} tokens")
        keep = []
        for layer, row in enumerate(ranked.tolist()):
            removed = removals(sorted(inner_positions(length), key=[-score for score in row].__getitem__))
            mask = torch.ones(len(removed), len(blocks), length, dtype=torch.bool)
            for variant, positions in enumerate(removed):
                mask[variant, layer, positions] = False
            keep.append(mask)
        values = _replaced(model, blocks, encoded, torch.cat(keep), remote).unflatten(0, (len(blocks), -1))
        require_finite(values, f"the model's predictions for prompt {number}")
        count = min(MOST_REMOVED, length - 2)
        full.append(values[:, 0])
        padded = torch.full((len(blocks), MOST_REMOVED, 2), torch.nan, dtype=values.dtype)
        padded[:, :count] = values[:, 1:1 + count]
        best.append(padded)
        rest.append(values[:, 1 + count:])
    full, best, rest = (torch.stack(rows, 1) for rows in (full, best, rest))
    return [TokenFaithfulness("own scores", *layer) for layer in zip(full, best, rest)]


def _replaced(model: Envoy, blocks: list[str], prompt: Prompt, keep: torch.Tensor,
              remote: bool | str) -> torch.Tensor:
    """Logit and probability of the answer, [rows, 2], a few thousand tokens per forward pass."""
    found, answers, unembedding = [], prompt.answers, unembedding_of(model)
    if not answers:
        answers = in_trace(model, prompt.ids[None], last_values, unembedding, answers, remote=remote,
                           gradients=False)[1]
    for rows in keep.split(max(1, MOST_TOKENS // keep.shape[-1])):
        ids = prompt.ids[None].repeat(len(rows), 1)
        found.append(in_trace(model, ids, replaced_values, unembedding, blocks, rows, answers, remote=remote,
                              gradients=False))
    return torch.cat(found)
