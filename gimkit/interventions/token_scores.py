"""The bodies of token-attribution traces: they leave only scores."""

import torch

from gimkit.interventions.attention import put_pattern_difference
from gimkit.interventions.metric import at_answers
from gimkit.interventions.weights import leaf_of


def on_cpu(found):
    """A tensor, or a tuple or list with tensors, on the CPU."""
    if isinstance(found, torch.Tensor):
        return found.cpu()
    return [on_cpu(part) for part in found] if isinstance(found, tuple | list) else found


def explained_value(logits: torch.Tensor, answers: list):
    """What is explained, [rows], and the answers' ids. logits: [rows, seq, vocab].

    answers: one id or two, the last position's logit or their difference; none, the first row's top prediction; a list
    of the ids of an answer of several tokens, whose log-probability is taken at as many last positions; or a function
    of the last position's logits [vocab], at least float32; then there are no ids.
    """
    final = logits[:, -1]
    if not answers:
        answers = [int(final[0].argmax())]
    if isinstance(answers[0], list):
        return log_probability(logits, answers[0]), answers
    if callable(answers[0]):
        final = final.to(torch.promote_types(final.dtype, torch.float32))
        return torch.stack([answers[0](row) for row in final]), []
    value = final[:, answers[0]]
    return (value if len(answers) == 1 else value - final[:, answers[1]]), answers


def answer_logits(model, unembedding, answers: list) -> torch.Tensor:
    """The logits [rows, tokens, vocab] that `explained_value` reads: at the last positions, no others are computed."""
    tokens = len(answers[0]) if answers and isinstance(answers[0], list) else 1
    return at_answers(model, unembedding, torch.arange(-tokens, 0)[None])


def log_probability(logits: torch.Tensor, ids: list) -> torch.Tensor:
    """The log-probability [rows] of tokens that the last positions predict, at least float32.

    >>> log_probability(torch.zeros(1, 3, 4), [2, 0]).exp()
    tensor([0.0625])
    """
    chosen = torch.tensor(ids, device=logits.device)
    last = logits[:, -len(ids):].to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(last, -1)[:, torch.arange(len(ids), device=logits.device), chosen].sum(1)


def along(difference: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """<difference, gradient> over the last axis, at least float32.

    >>> along(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor(11.)
    """
    precise = torch.promote_types(gradient.dtype, torch.float32)
    return (difference.detach().to(precise) * gradient.to(precise)).sum(-1)


def token_scores(model, embedding: str, unembedding, neutral: int, answers: list):
    """(embedding - neutral embedding) . gradient for each token of a single row, [seq]; and the answers' ids."""
    module = model.get(embedding)
    leaf = leaf_of(model, module.output)
    neutral_embedding = module(torch.tensor([[neutral]], device=leaf.device)).detach()
    module.output = leaf
    value, answers = explained_value(answer_logits(model, unembedding, answers), answers)
    gradient = torch.autograd.grad(value.sum(), leaf)[0]
    return along(leaf - neutral_embedding, gradient)[0], answers


def integrated_token_scores(model, embedding: str, unembedding, neutral: int, answers: list, free: torch.Tensor):
    """Integrated gradients over the row count's midpoints between neutral and real embeddings, [seq]; and the ids.

    free: [seq], True where the path moves. Without answers the target is the top prediction of the point nearest to
    the real prompt.
    """
    module = model.get(embedding)
    real = module.output.detach()
    neutral_embedding = module(torch.tensor([[neutral]], device=real.device)).detach()
    steps = real.shape[0]
    change = (real - neutral_embedding) * free[:, None].to(real.device)
    left = 1 - (torch.arange(steps, device=real.device, dtype=real.dtype) + 0.5) / steps
    leaf = leaf_of(model, real - left[:, None, None] * change)
    module.output = leaf
    logits = answer_logits(model, unembedding, answers)
    value, answers = explained_value(logits.flip(0), answers)
    gradient = torch.autograd.grad(value.sum(), leaf)[0].mean(0)
    return along(change[0], gradient), answers


def rescaled_token_scores(model, embedding: str, unembedding, activations: list, answers: list):
    """(embedding - neutral embedding) . DeepLIFT's multipliers, [seq]; and the ids. Rows: the prompt, and all neutral.

    At each activation the slope is the finite difference between the rows; where they hardly differ, its derivative.
    """
    module = model.get(embedding)
    leaf = leaf_of(model, module.output)
    module.output = leaf
    for path in activations:
        activation = model.get(path)
        x, y = activation.input, activation.output
        (x, x_neutral), (y, y_neutral) = x.chunk(2), y.chunk(2)
        step = (x - x_neutral).detach()
        far = step.abs() > 1e-4
        slope = (y - y_neutral).detach() / torch.where(far, step, torch.ones_like(step))
        activation.output = torch.cat([torch.where(far, y.detach() + slope * (x - x.detach()), y), y_neutral])
    value, answers = explained_value(answer_logits(model, unembedding, answers), answers)
    gradient = torch.autograd.grad(value[0], leaf)[0]
    return along(leaf[0] - leaf[1], gradient[0]), answers


def pattern_token_scores(model, embedding: str, unembedding, attentions: list, answers: list):
    """(embedding - neutral embedding) . gradient with (s - s') g at each softmax, [seq]; and the ids.

    Rows: the prompt, and the same with all tokens neutral, which gives the patterns s'.
    """
    module = model.get(embedding)
    leaf = leaf_of(model, module.output)
    module.output = leaf
    for attention in attentions:
        put_pattern_difference(model.get(attention))
    value, answers = explained_value(answer_logits(model, unembedding, answers), answers)
    gradient = torch.autograd.grad(value[0], leaf)[0]
    return along(leaf[0] - leaf[1], gradient[0]), answers


def last_values(model, unembedding, answers: list):
    """The explained value and the first answer's probability, [rows, 2]; and the ids. A function has no probability."""
    logits = answer_logits(model, unembedding, answers)
    value, answers = explained_value(logits, answers)
    if not answers:
        share = torch.full_like(value, torch.nan)
    else:
        ids = answers[0] if isinstance(answers[0], list) else [answers[0]]
        share = log_probability(logits[:, -len(ids):].double(), ids).exp()
    return torch.stack([value.double(), share.double()], 1), answers
