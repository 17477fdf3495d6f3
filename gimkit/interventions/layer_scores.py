"""The bodies of layer-wise traces: residual streams scored and replaced."""

import torch

from gimkit.interventions.attention import put_pattern_difference
from gimkit.interventions.token_scores import along, answer_logits, explained_value, last_values
from gimkit.interventions.weights import leaf_of


def stream_scores(model, unembedding, blocks: list, answers: list):
    """(stream - its mean over positions) . gradient at each block's input, [layers, seq]; and the answers' ids."""
    streams = []
    for path in blocks:
        block = model.get(path)
        x = block.input
        if not streams:
            x = leaf_of(model, x)
            block.input = x
        streams.append(x)
    value, answers = explained_value(answer_logits(model, unembedding, answers), answers)
    gradients = torch.autograd.grad(value.sum(), streams)
    scores = [along(x - x.mean(1, keepdim=True), g)[0] for x, g in zip(streams, gradients)]
    return torch.stack(scores), answers


def integrated_stream_scores(model, unembedding, path: str, answers: list):
    """The same with gradients averaged over midpoints between mean and stream of one block's input, [seq].

    The rows are copies of one prompt, a point each.
    """
    block = model.get(path)
    x = block.input.detach()
    mean = x.mean(1, keepdim=True)
    shares = (torch.arange(len(x), device=x.device, dtype=x.dtype) + 0.5) / len(x)
    leaf = leaf_of(model, mean + shares[:, None, None] * (x - mean))
    block.input = leaf
    value, answers = explained_value(answer_logits(model, unembedding, answers), answers)
    gradient = torch.autograd.grad(value.sum(), leaf)[0].mean(0)
    return along((x - mean)[0], gradient), answers


def pattern_stream_scores(model, unembedding, path: str, attentions: list, answers: list):
    """The same of one block's input with (s - s') g as the gradient of each later softmax, [seq].

    The rows are two copies of a prompt; in the second every position of the block's input becomes the mean, which
    gives s'. attentions: of this block and those after it.
    """
    block = model.get(path)
    x = block.input.detach()
    mean = x[:1].mean(1, keepdim=True)
    leaf = leaf_of(model, torch.cat([x[:1], mean.expand_as(x[:1])]))
    block.input = leaf
    for attention in attentions:
        put_pattern_difference(model.get(attention))
    value, answers = explained_value(answer_logits(model, unembedding, answers), answers)
    gradient = torch.autograd.grad(value[0], leaf)[0]
    return along(leaf[:1] - mean, gradient[:1])[0], answers


def replaced_values(model, unembedding, blocks: list, keep: torch.Tensor, answers: list):
    """The answer's logit and probability, [rows, 2], when streams at some positions are their mean over positions.

    keep: [rows, layers, seq], True where a block's input stays as it comes.
    """
    for layer, path in enumerate(blocks):
        block = model.get(path)
        x = block.input
        block.input = torch.where(keep[:, layer, :, None].to(x.device), x, x.mean(1, keepdim=True))
    return last_values(model, unembedding, answers)[0]
