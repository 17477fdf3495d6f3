"""Which positions of the residual stream carry the answer at each layer, and whether scores find them."""

import torch
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
from gimkit.model.prompt import ask, check_explained, inner_positions
from gimkit.remote import in_trace
from gimkit.rules import RULES
from gimkit.tokens.faithfulness import MOST_REMOVED, TokenFaithfulness, removals

MOST_TOKENS = 2**13  # of one forward


def layer_scores(model, prompt, target=None, *, method: str = "gim", steps: int = 20, glue: str | None = None,
                 remote: bool | str = False) -> torch.Tensor:
    """Score every layer's residual stream at every position by how much it speaks for a target token, [layers, seq].

    >>> layer_scores(model, "Mary drove to the farm with John. John lent a map to", "Mary").shape
    torch.Size([5, 14])

    A node is the input x of a block at one position; its score is (x - mean over positions of x) . gradient of the
    target's logit, in logits. method: a preset of `gimkit.RULES` ("gim", "gradient", ...), one forward and one backward
    pass for all layers. Others take a pass per layer: "ig", gradients averaged over `steps` midpoints between the mean
    and x at all positions; "pattern-difference", the gradient to later attention scores is (s - s') times the gradient
    to the pattern s, where s' is the pattern when all positions of this layer hold the mean.
    model, prompt, target, glue, remote: as in `gimkit.attribute`; an answer of several tokens is refused.
    Raises GimkitError for an unknown method, an edited model, NaN.
    Source: arXiv 2505.17630, first version, the layer experiment (`evaluate_layers.py`; IG with 50 steps). Its "AtP*"
    is this replacement alone, not the method of arXiv 2403.00745; that s' comes from the run with all positions at
    their mean is our reading.
    """
    if method not in ("ig", "pattern-difference", *RULES):
        raise GimkitError(f"unknown method {method!r}; use ig, pattern-difference, or one of {', '.join(RULES)}")
    steps = check_whole("steps", steps)
    check_unedited(model)
    asked = ask(model, prompt, target, baseline=0, glue=glue)
    check_explained(asked, "layer_scores", "logit", "function")
    parts, answers = architecture_of(model).blocks, asked.answers
    blocks, attentions = [block.path for block in parts], [block.attention for block in parts]
    if method in ("ig", "pattern-difference"):
        check_differentiable(model, architecture_of(model))
        found, rows = [], asked.ids[None].repeat(steps if method == "ig" else 2, 1)
        for layer, path in enumerate(blocks):
            body, further = (integrated_stream_scores, ()) if method == "ig" else (
                pattern_stream_scores, (attentions[layer:],))
            scores, ids = in_trace(model, rows, body, unembedding_of(model), path, *further, answers, remote=remote)
            answers = ids or answers  # of a function none come back
            found.append(scores)
        scores = torch.stack(found)
    else:
        edited = apply(model, method)
        scores, _ = in_trace(edited, asked.ids[None], stream_scores, unembedding_of(model), blocks, answers,
                             remote=remote)
    require_finite(scores)
    return scores


def layer_faithfulness(model, prompts, scores, targets=None, *, glue: str | None = None,
                       remote: bool | str = False) -> list[TokenFaithfulness]:
    """Comprehensiveness and sufficiency of the positions that scores rank, a result per layer.

    >>> prompt, target = "Mary drove to the farm with John. John lent a map to", "Mary"
    >>> layers = layer_faithfulness(model, [prompt], [layer_scores(model, prompt, target)], [target])
    >>> len(layers), layers[0].comprehensiveness().shape
    (5, torch.Size([1]))

    As `gimkit.tokens.token_faithfulness`, but at each layer a position's stream is replaced by the mean over positions,
    instead of its token. scores: n tensors [layers, seq]. prompts, targets, glue, remote: as there.
    Raises GimkitError for scores of another shape or with NaN, a target that is not one token, a prompt of fewer than 3
    tokens, NaN.
    Source: arXiv 2505.17630, first version, the layer experiment.
    """
    check_unedited(model)
    blocks = [block.path for block in architecture_of(model).blocks]
    prompts, scores = list(prompts), list(scores)
    targets = [None] * len(prompts) if targets is None else list(targets)
    if not prompts or not len(prompts) == len(scores) == len(targets):
        raise GimkitError(f"give as many scores and targets as prompts, at least one: there are {len(prompts)} "
                          f"prompts, {len(scores)} scores, {len(targets)} targets")
    full, best, rest = [], [], []  # a row per prompt, each [layers, removed, 2]
    for number, (prompt, ranked, target) in enumerate(zip(tqdm(prompts, desc="layers", delay=2, leave=False), scores,
                                                          targets, strict=True)):
        asked = ask(model, prompt, target, baseline=0, glue=glue)  # no token is replaced, so any baseline will do
        check_explained(asked, "layer_faithfulness", "logit")
        length, ranked = len(asked.ids), torch.as_tensor(ranked)
        require_finite(ranked, f"prompt {number}: the scores")
        if ranked.shape != (len(blocks), length):
            raise GimkitError(f"prompt {number}: scores have the shape {tuple(ranked.shape)}, not {len(blocks)} layers "
                              f"x {length} tokens")
        keep = []
        for layer, row in enumerate(ranked.tolist()):
            order = sorted(inner_positions(length), key=lambda position, row=row: -row[position])
            removed = removals(order)
            mask = torch.ones(len(removed), len(blocks), length, dtype=torch.bool)
            for variant, positions in enumerate(removed):
                mask[variant, layer, positions] = False
            keep.append(mask)
        values = _replaced(model, blocks, asked, torch.cat(keep), remote).unflatten(0, (len(blocks), -1))
        require_finite(values, f"the model's answers to prompt {number}")
        count = min(MOST_REMOVED, length - 2)
        full.append(values[:, 0])
        padded = torch.full((len(blocks), MOST_REMOVED, 2), torch.nan, dtype=values.dtype)
        padded[:, :count] = values[:, 1:1 + count]
        best.append(padded)
        rest.append(values[:, 1 + count:])
    full, best, rest = (torch.stack(rows, 1) for rows in (full, best, rest))
    return [TokenFaithfulness("own scores", *layer) for layer in zip(full, best, rest)]


def _replaced(model, blocks: list, asked, keep: torch.Tensor, remote: bool) -> torch.Tensor:
    """Logit and probability of the answer, [rows, 2], a few thousand tokens a forward."""
    found, answers, unembedding = [], asked.answers, unembedding_of(model)
    if not answers:
        answers = in_trace(model, asked.ids[None], last_values, unembedding, answers, remote=remote, gradients=False)[1]
    for rows in keep.split(max(1, MOST_TOKENS // keep.shape[-1])):
        ids = asked.ids[None].repeat(len(rows), 1)
        found.append(in_trace(model, ids, replaced_values, unembedding, blocks, rows, answers, remote=remote,
                              gradients=False))
    return torch.cat(found)
