"""The bodies of token-attribution traces: they leave only scores. Shipped to servers by value."""

import torch

from gimkit.interventions.attention import put_pattern_difference
from gimkit.interventions.weights import leaf_of


def on_cpu(found):
    """A tensor, or a tuple or list with tensors, on the CPU."""
    if isinstance(found, torch.Tensor):
        return found.cpu()
    return [on_cpu(part) for part in found] if isinstance(found, tuple | list) else found


def explained_logit(logits: torch.Tensor, answers: list):
    """The last position's logit of one answer, or of the first minus the second, [rows]; and the answers' ids.

    No answers: the first row's top prediction.
    """
    final = logits[:, -1]
    if not answers:
        answers = [int(final[0].argmax())]
    value = final[:, answers[0]]
    return (value if len(answers) == 1 else value - final[:, answers[1]]), answers


def token_scores(model, embedding: str, neutral: int, answers: list):
    """(embedding - neutral embedding) . gradient for each token of a single row, [seq]; and the answers' ids."""
    module = model.get(embedding)
    leaf = leaf_of(model, module.output)
    neutral_embedding = module(torch.tensor([[neutral]], device=leaf.device)).detach()
    module.output = leaf
    value, answers = explained_logit(model.output.logits, answers)
    gradient = torch.autograd.grad(value.sum(), leaf)[0]
    return ((leaf - neutral_embedding).detach() * gradient).sum(-1)[0], answers


def integrated_token_scores(model, embedding: str, neutral: int, answers: list, free: torch.Tensor):
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
    logits = model.output.logits
    value, answers = explained_logit(logits.flip(0), answers)
    gradient = torch.autograd.grad(value.sum(), leaf)[0].mean(0)
    return (change[0] * gradient).sum(-1), answers


def rescaled_token_scores(model, embedding: str, activations: list, answers: list):
    """(embedding - neutral embedding) . DeepLIFT's multipliers, [seq]; and the ids. Rows: the prompt, its neutral twin.

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
    value, answers = explained_logit(model.output.logits, answers)
    gradient = torch.autograd.grad(value[0], leaf)[0]
    return ((leaf[0] - leaf[1]).detach() * gradient[0]).sum(-1), answers


def pattern_token_scores(model, embedding: str, attentions: list, answers: list):
    """(embedding - neutral embedding) . gradient with (s - s') g at each softmax, [seq]; and the ids.

    Rows: the prompt, and its neutral twin, which gives the patterns s'.
    """
    module = model.get(embedding)
    leaf = leaf_of(model, module.output)
    module.output = leaf
    for attention in attentions:
        put_pattern_difference(model.get(attention))
    value, answers = explained_logit(model.output.logits, answers)
    gradient = torch.autograd.grad(value[0], leaf)[0]
    return ((leaf[0] - leaf[1]).detach() * gradient[0]).sum(-1), answers


def last_values(model, answers: list):
    """The explained logit and the first answer's probability at the last position, [rows, 2]; and the ids."""
    logits = model.output.logits
    value, answers = explained_logit(logits, answers)
    share = torch.log_softmax(logits[:, -1].double(), -1)[:, answers[0]].exp()
    return torch.stack([value.double(), share], 1), answers
