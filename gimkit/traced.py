"""The bodies of token-attribution traces: they leave only scores. Shipped to servers by value."""

import torch


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
    neutral_embedding = module(torch.tensor([[neutral]], device=model.device)).detach()
    leaf = module.output.detach().requires_grad_(True)
    module.output = leaf
    value, answers = explained_logit(model.output.logits, answers)
    gradient = torch.autograd.grad(value.sum(), leaf)[0]
    return ((leaf - neutral_embedding).detach() * gradient).sum(-1)[0], answers


def integrated_token_scores(model, embedding: str, neutral: int, answers: list):
    """Integrated gradients over the row count's midpoints between neutral and real embeddings, [seq]; and the ids.

    Without answers the target is the top prediction of the point nearest to the real prompt.
    """
    module = model.get(embedding)
    neutral_embedding = module(torch.tensor([[neutral]], device=model.device)).detach()
    real = module.output.detach()
    steps = real.shape[0]
    share = (torch.arange(steps, device=real.device, dtype=real.dtype) + 0.5) / steps
    leaf = (neutral_embedding + share[:, None, None] * (real - neutral_embedding)).requires_grad_(True)
    module.output = leaf
    logits = model.output.logits
    value, answers = explained_logit(logits.flip(0), answers)
    gradient = torch.autograd.grad(value.sum(), leaf)[0].mean(0)
    return ((real[0] - neutral_embedding[0]) * gradient).sum(-1), answers
