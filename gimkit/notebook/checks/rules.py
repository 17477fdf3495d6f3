"""The checks of the backward rules, in notebook 02."""

import torch

from gimkit.model.apply import apply
from gimkit.model.architecture import architecture_of
from gimkit.notebook.checks.answers import (
    close,
    exercise,
    gradients_of,
    random_numbers,
    recognise,
    same_bits,
    unwritten,
)
from gimkit.rules import Rules


@exercise
def split_gradients(answer) -> None:
    """Exercise 02.1: `answer(q, k, v)` is q, k, v, the same values with gradients times 1/4, 1/4 and 1/2.

    >>> split_gradients(lambda q, k, v: None)
    Your turn: return three tensors, q, k and v, each of its own shape.
    """
    inputs = [random_numbers(2, 4, 6, seed=i).float().requires_grad_(True) for i in range(3)]
    result = answer(*inputs)
    if unwritten(result, "return three tensors, q, k and v, each of its own shape."):
        return
    assert isinstance(result, tuple | list) and len(result) == 3, "Return three tensors: q, k, v."
    factors = []
    for got, given, name in zip(result, inputs, "qkv"):
        same_bits(got, given.detach(), name)
        assert got.requires_grad, f"{name} has no gradient any more; a factor of 0 is not wanted."
        upstream = random_numbers(2, 4, 6, seed=9).float()
        [gradient] = torch.autograd.grad(got, given, upstream)
        factors.append(float((gradient / upstream).mean()))
    recognise(torch.tensor(factors), [
        (torch.ones(3), "The values are right, and the gradients are the plain ones: nothing is scaled yet."),
        (torch.full((3,), 0.5), "One half each: but q and k pass through two products (q with k, then weights with v), "
                                "so their half is halved again: 1/4."),
        (torch.tensor([0.5, 0.5, 0.25]), "The other way round: v passes through one product, q and k through two."),
        (torch.full((3,), 0.25), "1/4 each: v passes through one product only, so its share is 1/2."),
    ])
    assert close(torch.tensor(factors), torch.tensor([0.25, 0.25, 0.5])), (
        "The gradients of q, k, v are multiplied by {:.3g}, {:.3g}, {:.3g}; they should be by 0.25, 0.25, 0.5."
        .format(*factors))
    print("Correct: every bit of the values, and shares 1/4 + 1/4 + 1/2 = 1.")


@exercise
def frozen_norm(answer) -> None:
    """Exercise 02.2: `answer(x, y, weight, eps)` is y = LayerNorm(x), its gradient with a constant denominator.

    >>> frozen_norm(lambda *given: None)
    Your turn: return one tensor of the shape of y.
    """
    x, eps = random_numbers(2, 3, 8).requires_grad_(True), 0.1
    weight, bias = 1 + random_numbers(8, seed=1) / 2, random_numbers(8, seed=2)
    y = torch.nn.functional.layer_norm(x, (8,), weight, bias, eps)
    upstream = random_numbers(2, 3, 8, seed=3)
    result = answer(x, y, weight, eps)
    if unwritten(result, "return one tensor of the shape of y."):
        return
    same_bits(result, y.detach(), "y")
    [gradient] = gradients_of(result, upstream, [x], "your norm")
    g = weight * upstream
    sigma = (x.detach().var(-1, correction=0, keepdim=True) + eps).sqrt()
    centred = (g - g.mean(-1, keepdim=True)) / sigma
    [plain] = torch.autograd.grad(y, x, upstream, retain_graph=True)
    recognise(gradient, [
        (plain, "This is the plain gradient: the denominator is still differentiated. Compute it from x.detach()."),
        (plain + centred, "Two gradients were added, y's own and the frozen one. Use y.detach() + (s - s.detach())."),
        (g / sigma, "The mean was detached too. Only the denominator is frozen; centring stays differentiable."),
        ((upstream - upstream.mean(-1, keepdim=True)) / sigma, "The norm's weight is missing from the gradient."),
        (centred * sigma / (x.detach().var(-1, keepdim=True) + eps).sqrt(),
         "The variance is divided by width - 1: torch's var() does so unless you write correction=0. A norm divides by "
         "the width."),
        (centred * sigma / (sigma**2 - eps).sqrt(), "eps is missing: sigma is the root of the variance plus eps."),
    ])
    assert close(gradient, centred), (
        "Not the frozen gradient. The surrogate is weight * (x - mean of x) / sigma, sigma from x.detach().")
    print("Correct: y in every bit, and dL/dx = (w g - mean of w g) / sigma.")


@exercise
def tempered_attention(answer) -> None:
    """Exercise 02.3: `answer(attend, q, k, v, scaling, temperature)`: attend's value, the gradients of q and k at T.

    >>> tempered_attention(lambda *given: None)
    Your turn: return one tensor of the shape of attend's output.
    """
    q, k, v = (random_numbers(1, 2, 5, 4, seed=i).requires_grad_(True) for i in range(3))
    scaling, temperature, upstream = 1.5, 2.0, random_numbers(1, 2, 5, 4, seed=4)

    def attend(q, k, v, scaling):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)

    result = answer(attend, q, k, v, scaling, temperature)
    if unwritten(result, "return one tensor of the shape of attend's output."):
        return
    plain = attend(q, k, v, scaling)
    same_bits(result, plain.detach(), "the output")
    gradients = gradients_of(result, upstream, [q, k, v], "your attention")
    unchanged = torch.autograd.grad(plain, [q, k, v], upstream)
    with torch.no_grad():  # the formula, on the whole attention map
        future = torch.ones(5, 5).triu(1).bool()
        scores = (scaling * q @ k.mT).masked_fill(future, -torch.inf)
        g, soft = upstream @ v.mT, (scores / temperature).softmax(-1)
        ds = soft * (g - (soft * g).sum(-1, keepdim=True))
        wanted = [scaling * ds @ k, scaling * ds.mT @ q, scores.softmax(-1).mT @ upstream]
    recognise(gradients[0], [
        (unchanged[0], "q's gradient is the plain one: it should come from a run with scaling / temperature."),
        (wanted[0] / temperature, "q's gradient is 1 / T of what it should be: the chain rule through scores / T "
                                  "leaves a 1 / T that the rule does not have. Multiply the added term by the "
                                  "temperature."),
        (unchanged[0] + wanted[0], "q gets two gradients, the plain one and the tempered one. Detach q and k in the "
                                   "first run."),
        (unchanged[0] + wanted[0] / temperature, "q gets two gradients. Detach q and k in the first run, and multiply "
                                                 "the added term by the temperature."),
    ])
    assert close(gradients[0], wanted[0]) and close(gradients[1], wanted[1]), (
        "The gradients of q and k are not those of the temperature rule: run attend again with scaling / temperature.")
    assert close(gradients[2], wanted[2]), (
        "q and k are right, but v's gradient changed: it comes from the first run alone. Detach v in the second.")
    print("Correct: one kernel, called twice; the value and v at T = 1, the gradients of q and k at T = 2.")


@exercise
def halved_products(answer, model) -> None:
    """Exercise 02.4: `answer(model)` is an edited copy of a gated model; half of the gradient passes each product.

    >>> halved_products(lambda model: None, model)
    Your turn: return an edited copy of the model.
    """
    edited = answer(model)
    if unwritten(edited, "return an edited copy of the model."):
        return
    assert hasattr(edited, "trace"), "Return the edited model that model.edit() gives you."
    ids = torch.tensor([[1, 7, 12, 5, 30, 9]])
    plain, wanted, got = (_logits_and_gradient(m, ids) for m in (model, apply(model, Rules(gate=0.5, up=0.5)), edited))
    assert torch.equal(got[0], plain[0]), (
        "The logits changed: 0.5 * x halves the value as well. Halve the gradient alone, with scale_grad(x, 0.5).")
    recognise(got[1], [
        (plain[1], "The gradient is still the plain one: nothing was placed. Assign to down_proj.input in the edit."),
        (_logits_and_gradient(apply(model, Rules(gate=0.5)), ids)[1],
         "Only the gate branch is halved. Halving the product itself, at down_proj.input, halves both."),
        (_logits_and_gradient(apply(model, Rules(up=0.5)), ids)[1],
         "Only the up branch is halved. Halving the product itself, at down_proj.input, halves both."),
        (_logits_and_gradient(apply(model, Rules(gate=0.25, up=0.25)), ids)[1],
         "A quarter each: the product was halved and its factors again. Once is enough."),
    ])
    assert close(got[1], wanted[1]), (
        "The gradient changed, but not by halves in every layer: does the edit reach each layer's down_proj, once?")
    count = len(architecture_of(model).blocks)
    print(f"Correct: the same logits, and half of the gradient through each of {count} products.")


def _logits_and_gradient(model, ids) -> tuple:
    """Logits, and the gradient at the embeddings of the largest last logit; both for token ids [1, seq]."""
    path = architecture_of(model).embedding
    with model.trace(input_ids=ids, use_cache=False):
        embedding = model.get(path)
        leaf = embedding.output.detach().requires_grad_(True)
        embedding.output = leaf
        logits = model.output.logits.save()
        gradient = torch.autograd.grad(logits[0, -1].max(), leaf)[0].save()
    return logits.detach(), gradient
