"""The checks of notebook 04, who did it."""

import torch

from gimkit.circuits import score_nodes
from gimkit.model.apply import apply
from gimkit.model.architecture import architecture_of
from gimkit.notebook.checks.answers import close, random_numbers, recognise, unwritten
from gimkit.tasks import ioi


def attribution_patching(answer, model) -> None:
    """Exercise 04.1: `answer(model, module, task, right, wrong)` estimates each example's effect of a module, [n]."""
    task = ioi(model, n=5, seed=5)
    right, wrong = (torch.tensor([ids[0] for ids in answers]) for answers in (task.good, task.bad))
    path = architecture_of(model).blocks[1].mlp
    for name, edited in (("gradient", model), ("gim", apply(model))):
        result = answer(edited, edited.get(path), task, right, wrong)
        if unwritten(result, "trace clean and corrupt rows, return (clean - corrupt) . gradient for each example."):
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
        recognise(result.detach(), lessons)
        assert close(result.detach(), wanted), (
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
    from scipy import stats  # slow to import

    for a, b, tied in ((random_numbers(12).exp(), random_numbers(12, seed=1) + random_numbers(12), False),
                       (torch.tensor([2.0, 0, 1, 0, 2, 3, 0, 1]), torch.tensor([1.0, 0, 0, 1, 5, 4, 0, 4]), True)):
        result = answer(a.clone(), b.clone())
        if unwritten(result, "return Pearson's correlation of the two vectors' ranks."):
            return
        result, wanted = torch.as_tensor(result, dtype=torch.float64), stats.spearmanr(a, b).statistic
        assert result.numel() == 1, f"Return one number; this has shape {list(result.shape)}."
        orders = [x.argsort(stable=True).double() for x in (a, b)]
        recognise(result.reshape(()), [
            (stats.pearsonr(a, b).statistic, "This is Pearson's correlation of the values. Replace them by ranks "
                                             "first."),
            (-wanted, "The sign is reversed: rank both vectors in the same direction."),
            (stats.pearsonr(*orders).statistic,
             "argsort says where the smallest value is, not which rank the first value has. Count instead: a value's "
             "rank is the number of values below it."),
        ])
        assert close(result.reshape(()), wanted), (
            "Right without ties, not with them: equal values share the mean of the ranks that they take up, so [5, 5, "
            "7] has the ranks 0.5, 0.5, 2." if tied else
            f"Not Spearman's correlation: {float(result):.3f} instead of {wanted:.3f}. It is Pearson's correlation of "
            "ranks: centre both, then their product sum over the root of their square sums.")
    print("Correct: equal to scipy.stats.spearmanr, with ties and without.")


def bootstrap_interval(answer) -> None:
    """Exercise 04.3: `answer(correlate, a, b)` is the 95% interval over examples; a, b: [examples, nodes]."""
    from scipy import stats  # slow to import

    torch.manual_seed(0)
    signal, shared = random_numbers(12), 3 * random_numbers(40, 12, seed=1)
    a, b = (signal + shared + 0.8 * random_numbers(40, 12, seed=seed) for seed in (2, 3))

    def correlate(x, y):
        assert x.shape == y.shape == (12,), (
            f"correlate got {list(x.shape)} and {list(y.shape)}: give it two vectors with a number per node, the means "
            "over the drawn examples.")
        return float(stats.spearmanr(x, y).statistic)

    result = answer(correlate, a.clone(), b.clone())
    if unwritten(result, "draw examples again and again, return the 2.5% and 97.5% quantiles of the correlations."):
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
