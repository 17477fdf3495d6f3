"""The exercises' checks: a stub hears "Your turn", a wrong answer a sentence that teaches, a right one "Correct".

Each check recomputes what is asked from its formula, compares, and looks for the usual mistakes by name.
A wrong answer raises AssertionError.
"""

import torch
from scipy import stats

from gimkit.anatomy import dissect
from gimkit.circuits import score_nodes
from gimkit.edits import apply
from gimkit.rules import Rules
from gimkit.tasks import ioi


def _unwritten(answer, task: str) -> bool:
    """Whether an answer is still the stub's; if so, say what to do."""
    if answer is None or answer is ...:
        print(f"Your turn: {task}")
        return True
    return False


def _close(a, b) -> bool:
    """Equal up to rounding, relative to the larger one; False for shapes that differ."""
    a, b = (torch.as_tensor(t, dtype=torch.float64) for t in (a, b))
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * (a.abs().max() + b.abs().max()) + 1e-9)


def _recognise(answer, mistakes) -> None:
    """Raise the lesson of the first mistake, (result of the mistake, lesson), that equals the answer."""
    for result, lesson in mistakes:
        assert not _close(answer, result), lesson


def _same_bits(answer, value, name: str) -> None:
    """Raise unless two tensors agree in every bit."""
    assert isinstance(answer, torch.Tensor), f"{name} must be a tensor, not {type(answer).__name__}."
    assert answer.shape == value.shape, f"{name} has shape {list(answer.shape)}, it should be {list(value.shape)}."
    assert _close(answer.detach(), value), (
        f"{name} changed its value: a rule may touch the gradient only. Build it from x.detach(), which has x's value "
        "and no gradient, plus something that is zero in value.")
    assert torch.equal(answer.detach(), value), (
        f"{name} is right up to rounding, but not bit for bit. Let the added term be exactly zero, as in "
        "a * (x - x.detach()).")


def _gradients(output, upstream, inputs, name: str) -> list:
    """The gradients of the inputs; raise where none arrives."""
    assert output.requires_grad, f"No gradient flows through {name}: something was detached that should not be."
    gradients = torch.autograd.grad(output, inputs, upstream, allow_unused=True, retain_graph=True)
    for gradient, label in zip(gradients, ("the first input", "the second input", "the third input")):
        assert gradient is not None, f"In {name} no gradient reaches {label}: it was detached everywhere."
    return list(gradients)


def _random(*shape, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# 00 Check your seat


def read_a_trace(answer, model) -> None:
    """Exercise 00.1: `answer(model, module, prompt)` is the shape of a module's output, [1, tokens, width]."""
    module = model.get(dissect(model).blocks[0].mlp)
    width, vocabulary = model.config.get_text_config().hidden_size, model.config.get_text_config().vocab_size
    for prompt in ("Mary and John went home .", "Mary and John went home . John gave a ring to"):
        shape = answer(model, module, prompt)
        if _unwritten(shape, "trace the prompt, save the module's output, return its shape."):
            return
        assert isinstance(shape, tuple | list), (
            f"Return the shape, {type(shape).__name__} is something else: inside the trace write "
            "output = module.output.save(), and after it return output.shape.")
        tokens = len(model.tokenizer(prompt)["input_ids"])
        assert len(shape) == 3, (
            f"A shape with {len(shape)} axes; expected 3: prompts, tokens, width. One prompt is still a batch of one.")
        assert shape[-1] != vocabulary, "The last axis is the vocabulary: these are the logits. Read module.output."
        assert shape[1] == tokens, (
            f"{shape[1]} positions, but this prompt has {tokens} tokens, the start token included. "
            "Take the shape from the trace of the prompt that is passed in.")
        assert tuple(shape) == (1, tokens, width), f"Expected (1, {tokens}, {width}), not {tuple(shape)}."
    print(f"Correct: (1, tokens, {width}): one prompt, a position per token, {width} numbers at each.")


# 01 When gradients lie


def _effects(scores, values, i: int, j: int, to) -> torch.Tensor:
    """Falls of the output with score i, j, both put at `to`, and the interaction of the two."""
    def fall(*lowered):
        other = scores.clone()
        other[list(lowered)] = torch.as_tensor(to, dtype=scores.dtype)
        return scores.softmax(-1) @ values - other.softmax(-1) @ values

    single, second, joint = fall(i), fall(j), fall(i, j)
    return torch.stack([single, second, joint, (joint - single - second) / joint])


def ablation_effects(answer) -> None:
    """Exercise 01.1: `answer(scores, values, i, j)` is (effect of i, of j, of both, interaction)."""
    scores, values, i, j = torch.tensor([3.0, 0.5, 2.5, -1.0, 0.0, 1.0]), _random(6).float() * 4, 2, 0
    result = answer(scores.clone(), values.clone(), i, j)
    if _unwritten(result, "return four numbers: effect of i, effect of j, effect of both, interaction."):
        return
    assert isinstance(result, tuple | list | torch.Tensor) and len(result) == 4, (
        "Return four numbers: the effect of i, of j, of both at once, and the interaction.")
    result = torch.tensor([float(number) for number in result])
    right = _effects(scores, values, i, j, scores.mean())
    single, second, joint, interaction = right
    _recognise(result[:3], [
        (-right[:3], "The signs are reversed: an effect is the output before minus the output after, so that it is "
                     "positive when the ablation hurts."),
        (_effects(scores, values, i, j, 0.0)[:3],
         "You put the scores at 0. Zero is no neutral score: softmax knows differences only. Use the row's mean."),
        (_effects(scores, values, i, j, -torch.inf)[:3],
         "You removed the positions (score minus infinity). Here an ablated score is put at the mean of its row."),
        (torch.stack([single, second, single + second]),
         "The joint effect is not the sum of the two single ones: lower both scores in the same softmax. "
         "That difference is what this exercise is about."),
    ])
    assert _close(result[:2], right[:2]), (
        "The single effects are off: put one score at scores.mean() (of the intact row), take softmax again, and "
        "subtract the new output from the old one.")
    assert _close(result[2], joint), (
        "The joint effect is off: both scores go to the mean of the intact row, not of a row that has already changed.")
    _recognise(result[3], [
        ((joint - single - second), "That is the interaction in logits; divide it by the joint effect."),
        ((joint - single - second) / (single + second),
         "Divide by the joint effect, not by the sum of the single ones: 1 then means that only both together matter."),
    ])
    assert _close(result[3], interaction), "The interaction is (joint - first - second) / joint."
    toy = answer(torch.tensor([6.0, 6, 0, 0, 0]), torch.tensor([10.0, 10, 0, 0, 0]), 0, 1)
    print("Correct: on the row of this notebook {:.3f} and {:.3f} alone, {:.3f} together; interaction {:.3f}."
          .format(*(float(number) for number in toy)))


def softmax_backward(answer) -> None:
    """Exercise 01.2: `answer(scores, g, temperature)` is dL/dscores under the temperature rule, g = dL/dweights."""
    scores, g = _random(2, 3, 5) * 3, _random(2, 3, 5, seed=1)
    scores[0, :, 4] = -torch.inf  # masked
    result = answer(scores.clone(), g.clone(), 2.0)
    if _unwritten(result, "return p_T * (g - sum of p_T * g), where p_T is the softmax of scores / temperature."):
        return
    assert isinstance(result, torch.Tensor) and result.shape == scores.shape, (
        f"The gradient has one number per score: shape {list(scores.shape)}, rows along the last axis.")
    leaf = scores.clone().requires_grad_(True)

    def backward(value):
        return torch.autograd.grad(value, leaf, g)[0]

    def wanted(temperature):
        return temperature * backward((leaf / temperature).softmax(-1))

    soft = (scores / 2).softmax(-1)
    _recognise(result, [
        (wanted(1.0), "This is the plain gradient: the temperature is not in it. Take softmax(scores / temperature)."),
        (wanted(2.0) / 2, "Half of what it should be: you kept the chain rule's 1 / T. The rule takes the softmax's "
                          "own formula at temperature T, with no further factor."),
        (soft * g, "The mean is missing: raising one score lowers all other weights, hence g minus sum of p_T * g."),
        (soft * (g - (soft * g).sum()), "The sum runs over the whole tensor; sum each row: sum(-1, keepdim=True)."),
        (soft * (g - g.mean(-1, keepdim=True)), "The mean of g is weighted by the softmax: sum of p_T * g."),
        (soft * (g - (scores.softmax(-1) * g).sum(-1, keepdim=True)),
         "The weighted mean uses the plain softmax; use the one at temperature T in both places."),
    ])
    assert _close(result, wanted(2.0)), (
        "Not the gradient at temperature 2. Compare p_T * (g - (p_T * g).sum(-1, keepdim=True)), "
        "p_T = softmax(scores / T, -1).")
    assert _close(answer(scores.clone(), g.clone(), 1.0), backward(leaf.softmax(-1))), (
        "Right at T = 2, but at T = 1 it is not autograd's gradient of the softmax: is the temperature typed in?")
    print("Correct: equal to autograd at T = 1, and to T x autograd of softmax(a / T) at T = 2.")


def hidden_from_the_gradient(scores) -> None:
    """Exercise 01.3: five scores where the gradient sees under 1% of a joint effect of 0.1 logits or more."""
    if _unwritten(scores, "choose five scores, then run this cell again."):
        return
    scores = torch.as_tensor(scores, dtype=torch.float64)
    assert scores.shape == (5,), f"Five scores, please, in one list; this has shape {list(scores.shape)}."
    values = torch.tensor([10.0, 10, 0, 0, 0], dtype=torch.float64)
    joint = float(_effects(scores, values, 0, 1, scores.mean())[2])
    weights = scores.softmax(-1)
    gradient = weights * (values - weights @ values)
    seen = float((gradient * (scores - scores.mean()))[:2].sum())
    assert joint >= 0.1, (
        f"The joint effect is {joint:.4f} logits: here even lowering both scores hardly matters, so the gradient's "
        "silence is no lie. The lowered scores (at the row's mean) must lose to the other positions.")
    assert abs(seen) < 0.01 * joint, (
        f"The gradient foretells {seen:.4f} of {joint:.3f} logits, {abs(seen) / joint:.1%}. It is proportional to "
        "the weight that the last three positions still have: make it smaller by raising the first two scores.")
    print(f"Correct: lowering both costs {joint:.3f} logits, the gradient foretells {seen:.5f} ({seen / joint:.2%}).")


# 02 The rules


def split_gradients(answer) -> None:
    """Exercise 02.1: `answer(q, k, v)` is q, k, v with gradients times 1/4, 1/4, 1/2 and every bit of the value."""
    inputs = [_random(2, 4, 6, seed=i).float().requires_grad_(True) for i in range(3)]
    result = answer(*inputs)
    if _unwritten(result, "return q, k, v with the same values and gradients times 1/4, 1/4 and 1/2."):
        return
    assert isinstance(result, tuple | list) and len(result) == 3, "Return three tensors: q, k, v."
    factors = []
    for got, given, name in zip(result, inputs, "qkv"):
        _same_bits(got, given.detach(), name)
        assert got.requires_grad, f"{name} has no gradient any more; a factor of 0 is not asked for."
        upstream = _random(2, 4, 6, seed=9).float()
        [gradient] = torch.autograd.grad(got, given, upstream)
        factors.append(float((gradient / upstream).mean()))
    _recognise(torch.tensor(factors), [
        (torch.ones(3), "The values are right, and the gradients are the plain ones: nothing is scaled yet."),
        (torch.full((3,), 0.5), "One half each: but q and k pass through two products (q with k, then weights with v), "
                                "so their half is halved again: 1/4."),
        (torch.tensor([0.5, 0.5, 0.25]), "The other way round: v passes through one product, q and k through two."),
        (torch.full((3,), 0.25), "1/4 each: v passes through one product only, so its share is 1/2."),
    ])
    assert _close(torch.tensor(factors), torch.tensor([0.25, 0.25, 0.5])), (
        "The gradients of q, k, v are multiplied by {:.3g}, {:.3g}, {:.3g}; they should be by 0.25, 0.25, 0.5."
        .format(*factors))
    print("Correct: every bit of the values, and shares 1/4 + 1/4 + 1/2 = 1.")


def frozen_norm(answer) -> None:
    """Exercise 02.2: `answer(x, y, weight, eps)` is y = LayerNorm(x), its gradient with a constant denominator."""
    x, weight, bias, eps = _random(2, 3, 8).requires_grad_(True), 1 + _random(8, seed=1) / 2, _random(8, seed=2), 0.1
    y = torch.nn.functional.layer_norm(x, (8,), weight, bias, eps)
    upstream = _random(2, 3, 8, seed=3)
    result = answer(x, y, weight, eps)
    if _unwritten(result, "return y's value with the gradient of a LayerNorm whose denominator is constant."):
        return
    _same_bits(result, y.detach(), "y")
    [gradient] = _gradients(result, upstream, [x], "your norm")
    g = weight * upstream
    sigma = (x.detach().var(-1, correction=0, keepdim=True) + eps).sqrt()
    centred = (g - g.mean(-1, keepdim=True)) / sigma
    [plain] = torch.autograd.grad(y, x, upstream, retain_graph=True)
    _recognise(gradient, [
        (plain, "This is the plain gradient: the denominator is still differentiated. Compute it from x.detach()."),
        (plain + centred, "Two gradients were added, y's own and the frozen one. Use y.detach() + (s - s.detach())."),
        (g / sigma, "The mean was detached too. Only the denominator is frozen; centring stays differentiable."),
        ((upstream - upstream.mean(-1, keepdim=True)) / sigma, "The norm's weight is missing from the gradient."),
        (centred * sigma / (sigma**2 - eps).sqrt(), "eps is missing: sigma is the root of the variance plus eps."),
    ])
    assert _close(gradient, centred), (
        "Not the frozen gradient. The surrogate is weight * (x - mean of x) / sigma, sigma from x.detach().")
    print("Correct: y in every bit, and dL/dx = (w g - mean of w g) / sigma.")


def tempered_attention(answer) -> None:
    """Exercise 02.3: `answer(attend, q, k, v, scaling, temperature)`: attend's value, q and k's gradients at T."""
    q, k, v = (_random(1, 2, 5, 4, seed=i).requires_grad_(True) for i in range(3))
    scaling, temperature, upstream = 1.5, 2.0, _random(1, 2, 5, 4, seed=4)

    def attend(q, k, v, scaling):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)

    result = answer(attend, q, k, v, scaling, temperature)
    if _unwritten(result, "return attend's value, with the softmax gradient at the given temperature."):
        return
    plain = attend(q, k, v, scaling)
    _same_bits(result, plain.detach(), "the output")
    gradients = _gradients(result, upstream, [q, k, v], "your attention")
    unchanged = torch.autograd.grad(plain, [q, k, v], upstream)
    with torch.no_grad():  # the formula, on the whole attention map
        future = torch.ones(5, 5).triu(1).bool()
        scores = (scaling * q @ k.mT).masked_fill(future, -torch.inf)
        g, soft = upstream @ v.mT, (scores / temperature).softmax(-1)
        ds = soft * (g - (soft * g).sum(-1, keepdim=True))
        wanted = [scaling * ds @ k, scaling * ds.mT @ q, scores.softmax(-1).mT @ upstream]
    _recognise(gradients[0], [
        (unchanged[0], "q's gradient is the plain one: it should come from a run with scaling / temperature."),
        (wanted[0] / temperature, "q's gradient is 1 / T of what it should be: the chain rule through scores / T "
                                  "leaves a 1 / T that the rule has not. Multiply the added term by the temperature."),
        (unchanged[0] + wanted[0], "q gets two gradients, the plain one and the tempered one. Detach q and k in the "
                                   "first run."),
        (unchanged[0] + wanted[0] / temperature, "q gets two gradients. Detach q and k in the first run, and multiply "
                                                 "the added term by the temperature."),
    ])
    assert _close(gradients[0], wanted[0]) and _close(gradients[1], wanted[1]), (
        "The gradients of q and k are not those of the temperature rule: run attend again with scaling / temperature.")
    assert _close(gradients[2], wanted[2]), (
        "q and k are right, but v's gradient changed: it comes from the first run alone. Detach v in the second.")
    print("Correct: one kernel, called twice; the value and v at T = 1, the gradients of q and k at T = 2.")


def halved_products(answer, model) -> None:
    """Exercise 02.4: `answer(model)` is an edited copy of a gated model, each branch of its products at one half."""
    edited = answer(model)
    if _unwritten(edited, "return an edited copy in which every act(gate) * up passes on half of its gradient."):
        return
    assert hasattr(edited, "trace"), "Return the edited model that model.edit() gives you."
    ids = torch.tensor([[1, 7, 12, 5, 30, 9]])
    plain, wanted, got = (_logits_and_gradient(m, ids) for m in (model, apply(model, Rules(gate=0.5, up=0.5)), edited))
    assert torch.equal(got[0], plain[0]), (
        "The logits changed: 0.5 * x halves the value as well. Halve the gradient alone, with scale_grad(x, 0.5).")
    _recognise(got[1], [
        (plain[1], "The gradient is still the plain one: nothing was placed. Assign to down_proj.input in the edit."),
        (_logits_and_gradient(apply(model, Rules(gate=0.5)), ids)[1],
         "Only the gate branch is halved. Halving the product itself, at down_proj.input, halves both."),
        (_logits_and_gradient(apply(model, Rules(up=0.5)), ids)[1],
         "Only the up branch is halved. Halving the product itself, at down_proj.input, halves both."),
        (_logits_and_gradient(apply(model, Rules(gate=0.25, up=0.25)), ids)[1],
         "A quarter each: the product was halved and its factors again. Once is enough."),
    ])
    assert _close(got[1], wanted[1]), (
        "The gradient changed, but not by halves in every layer: does the edit reach each layer's down_proj, once?")
    print(f"Correct: the same logits, and half of the gradient through each of {len(dissect(model).blocks)} products.")


def _logits_and_gradient(model, ids) -> tuple:
    """Logits, and the gradient at the embeddings of the largest last logit; both for token ids [1, seq]."""
    path = dissect(model).embedding
    with model.trace(input_ids=ids, use_cache=False):
        embedding = model.get(path)
        leaf = embedding.output.detach().requires_grad_(True)
        embedding.output = leaf
        logits = model.output.logits.save()
        gradient = torch.autograd.grad(logits[0, -1].max(), leaf)[0].save()
    return logits.detach(), gradient


# 04 Who did it?


def attribution_patching(answer, model) -> None:
    """Exercise 04.1: `answer(model, module, task, right, wrong)` estimates each example's effect of a module, [n]."""
    task = ioi(model, n=5, seed=5)
    right, wrong = (torch.tensor([ids[0] for ids in answers]) for answers in (task.good, task.bad))
    path = dissect(model).blocks[1].mlp
    for name, edited in (("gradient", model), ("gim", apply(model))):
        result = answer(edited, edited.get(path), task, right, wrong)
        if _unwritten(result, "trace clean and corrupt rows, return (clean - corrupt) . gradient for each example."):
            return
        assert isinstance(result, torch.Tensor) and result.shape == (5,), (
            f"Return one number per example: shape [5] here, not {list(torch.as_tensor(result).shape)}. Sum over "
            "positions and width, not over examples.")
        exact = score_nodes(model, task, name)
        wanted = exact.per_example[:, exact.nodes.index("m1")]
        output, gradient = _output_and_gradient(edited, path, task, right, wrong)
        clean, corrupt, slope = output[:5], output[5:], gradient[:5]
        lessons = [
            (-wanted, "The signs are reversed: take clean - corrupt, so that a positive score means that corrupting "
                      "this hurts."),
            ((clean * slope).sum((1, 2)), "This is output times gradient: a distance to zero. The question here is "
                                          "what the corrupt prompt would change: (clean - corrupt) . gradient."),
            (((clean - corrupt) * gradient[5:]).sum((1, 2)),
             "The gradient is that of the corrupt rows. The prediction starts at the clean run: gradient[:n]."),
            (((clean - corrupt) * slope)[torch.arange(5), task.last].sum(-1),
             "Only the last position is counted. Patching replaces the output at every position: sum over all."),
        ]
        _recognise(result.detach(), lessons)
        assert _close(result.detach(), wanted), (
            f"Not the score under the rules {name}: trace the model and the module that are passed in, take the "
            "gradient of the summed logit differences at the module's output, times (clean - corrupt).")
    print("Correct: the same function gives the gradient's score on the model, and GIM's on its edited copy.")


def _output_and_gradient(model, path: str, task, right, wrong) -> tuple:
    """A module's output on clean rows, then corrupt ones, and the gradient of each row's logit difference at it."""
    rows = torch.arange(2 * len(task))
    with model.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False):
        module = model.get(path)
        output = module.output.detach().requires_grad_(True)
        module.output = output
        logits = model.output.logits[rows, task.last.repeat(2)]
        difference = logits[rows, right.repeat(2)] - logits[rows, wrong.repeat(2)]
        gradient = torch.autograd.grad(difference.sum(), output)[0].save()
        output = output.detach().save()
    return output, gradient


def spearman(answer) -> None:
    """Exercise 04.2: `answer(a, b)` is Spearman's rank correlation of two vectors, equal values at their mean rank."""
    for a, b, tied in ((_random(12).exp(), _random(12, seed=1) + _random(12), False),
                       (torch.tensor([2.0, 0, 1, 0, 2, 3, 0, 1]), torch.tensor([1.0, 0, 0, 1, 5, 4, 0, 4]), True)):
        result = answer(a.clone(), b.clone())
        if _unwritten(result, "return Pearson's correlation of the two vectors' ranks."):
            return
        result, wanted = torch.as_tensor(result, dtype=torch.float64), stats.spearmanr(a, b).statistic
        assert result.numel() == 1, f"Return one number; this has shape {list(result.shape)}."
        orders = [x.argsort(stable=True).double() for x in (a, b)]
        _recognise(result.reshape(()), [
            (stats.pearsonr(a, b).statistic, "This is Pearson's correlation of the values. Replace them by ranks "
                                             "first."),
            (-wanted, "The sign is reversed: rank both vectors in the same direction."),
            (stats.pearsonr(*orders).statistic,
             "argsort says where the smallest value is, not which rank the first value has. Count instead: a value's "
             "rank is the number of values below it."),
        ])
        assert _close(result.reshape(()), wanted), (
            "Right without ties, not with them: equal values share the mean of the ranks that they take up, so [5, 5, "
            "7] has the ranks 0.5, 0.5, 2." if tied else
            f"Not Spearman's correlation: {float(result):.3f} instead of {wanted:.3f}. It is Pearson's correlation of "
            "ranks: centre both, then their product sum over the root of their square sums.")
    print("Correct: equal to scipy.stats.spearmanr, with ties and without.")


def bootstrap_interval(answer) -> None:
    """Exercise 04.3: `answer(correlate, a, b)` is the 95% interval over examples; a, b: [examples, nodes]."""
    torch.manual_seed(0)
    signal, shared = _random(12), 3 * _random(40, 12, seed=1)
    a, b = (signal + shared + 0.8 * _random(40, 12, seed=seed) for seed in (2, 3))

    def correlate(x, y):
        assert x.shape == y.shape == (12,), (
            f"correlate got {list(x.shape)} and {list(y.shape)}: give it two vectors with a number per node, the means "
            "over the drawn examples.")
        return float(stats.spearmanr(x, y).statistic)

    result = answer(correlate, a.clone(), b.clone())
    if _unwritten(result, "draw examples again and again, return the 2.5% and 97.5% quantiles of the correlations."):
        return
    assert len(result) == 2, "Return two numbers: the low and the high end."
    result = torch.tensor([float(end) for end in result])

    def ends(correlation):
        return torch.quantile(torch.tensor([correlation() for _ in range(600)]), torch.tensor([0.025, 0.975]))

    def drawn(count):
        return torch.randint(count, (count,))

    def paired():
        rows = drawn(40)
        return correlate(a[rows].mean(0), b[rows].mean(0))

    def of_nodes():
        nodes = drawn(12)
        return correlate(a.mean(0)[nodes], b.mean(0)[nodes])

    each = torch.tensor([correlate(x, y) for x, y in zip(a, b)])
    mistakes = [
        (lambda: correlate(a[drawn(40)].mean(0), b[drawn(40)].mean(0)),
         "The two methods were given different examples. Draw once per resample, and use the same rows for both."),
        (of_nodes, "You drew nodes. The model's nodes are all there is; the prompts are a sample: draw examples."),
        (lambda: each[drawn(40)].mean(), "This is the mean of the examples' own correlations. Correlate the means."),
        (lambda: each[drawn(40)][0], "This is how single examples spread. Correlate the means over drawn examples."),
    ]
    assert result[1] - result[0] > 1e-6, (
        "The interval has no width: drawing all examples once, in another order, changes no mean. Draw with "
        "replacement: torch.randint(n, (n,)).")
    wanted = ends(paired)
    if not _near(result, wanted):
        apart, lesson = min((_apart(result, ends(mistake)), lesson) for mistake, lesson in mistakes)
        assert apart > 0.25, lesson
    assert _near(result, wanted), (
        f"[{result[0]:.3f}, {result[1]:.3f}] is not the interval, which is about [{wanted[0]:.3f}, {wanted[1]:.3f}]: "
        "500 resamples or more; in each n rows with replacement; means over rows; correlate; 2.5% and 97.5% quantile.")
    print(f"Correct: about [{wanted[0]:.2f}, {wanted[1]:.2f}] around {correlate(a.mean(0), b.mean(0)):.2f}; "
          "not symmetric, as no correlation is above 1.")


def _apart(interval, other) -> float:
    """The larger distance between two intervals' ends, in widths of the second."""
    return float((interval - other).abs().max() / (other[1] - other[0]))


def _near(interval, other) -> bool:
    """Whether two intervals agree as far as random resampling lets them."""
    return _apart(interval, other) <= 0.25
