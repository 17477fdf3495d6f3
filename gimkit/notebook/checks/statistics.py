"""The checks of statistics: rank correlation and bootstrap intervals (notebook 04), replication (notebook 07)."""

import numpy
import torch

from gimkit.notebook.checks.answers import close, exercise, random_numbers, recognise, unwritten
from gimkit.statistics import bootstrap

SEEDS = range(306_000, 306_008)  # for these no mean is near an end of an interval, whichever prompts are resampled


@exercise
def spearman(answer) -> None:
    """Exercise 04.2: `answer(a, b)` is Spearman's rank correlation of two vectors; equal values have their mean rank.

    >>> spearman(lambda a, b: None)
    Your turn: return one number.
    """
    from scipy import stats  # slow to import

    for a, b, tied in ((random_numbers(12).exp(), random_numbers(12, seed=1) + random_numbers(12), False),
                       (torch.tensor([2.0, 0, 1, 0, 2, 3, 0, 1]), torch.tensor([1.0, 0, 0, 1, 5, 4, 0, 4]), True)):
        result = answer(a.clone(), b.clone())
        if unwritten(result, "return one number."):
            return
        result, wanted = torch.as_tensor(result, dtype=torch.float64), stats.spearmanr(a, b).statistic
        assert result.numel() == 1, f"Return one number; this has shape {list(result.shape)}."
        orders = [x.argsort(stable=True).double() for x in (a, b)]
        recognise(result.reshape(()), [
            (stats.pearsonr(a, b).statistic, "This is Pearson's correlation of the values. Replace them by ranks "
                                             "first."),
            (-wanted, "The sign is reversed: rank both vectors in the same direction."),
            (stats.pearsonr(*orders).statistic,
             "argsort gives the place of the smallest value, not the rank of the first value. Count instead: a value's "
             "rank is the number of values below it."),
        ])
        assert close(result.reshape(()), wanted), (
            "Right without ties, not with them: equal values share the mean of the ranks that they take up, so [5, 5, "
            "7] has the ranks 0.5, 0.5, 2." if tied else
            f"Not Spearman's correlation: {float(result):.3f} instead of {wanted:.3f}. It is Pearson's correlation of "
            "ranks: centre both, then their product sum over the root of their square sums.")
    print("Correct: equal to scipy.stats.spearmanr, with ties and without.")


@exercise
def bootstrap_interval(answer) -> None:
    """Exercise 04.3: `answer(correlate, a, b)` is the 95% interval over examples; a, b: [examples, nodes].

    >>> bootstrap_interval(lambda correlate, a, b: None)
    Your turn: return two numbers, (low, high).
    """
    from scipy import stats  # slow to import

    torch.manual_seed(0)
    signal, shared = random_numbers(12), 3 * random_numbers(40, 12, seed=1)
    a, b = (signal + shared + 0.8 * random_numbers(40, 12, seed=seed) for seed in (2, 3))

    def correlate(x, y):
        assert x.shape == y.shape == (12,), (
            f"correlate got {list(x.shape)} and {list(y.shape)}: give it two vectors with a number per node, the means "
            "over the drawn examples.")
        return float(stats.spearmanr(x, y).statistic)

    def paired():
        rows = _drawn(len(a))
        return correlate(a[rows].mean(0), b[rows].mean(0))

    result = answer(correlate, a.clone(), b.clone())
    if unwritten(result, "return two numbers, (low, high)."):
        return
    assert len(result) == 2, "Return two numbers: the low and the high end."
    result = torch.tensor([float(end) for end in result])
    assert result[1] - result[0] > 1e-6, (
        "The interval has no width: drawing all examples once, in another order, changes no mean. Draw with "
        "replacement: torch.randint(n, (n,)).")
    wanted = _ends(paired)
    if not _near(result, wanted):
        distance, lesson = min((_distance(result, _ends(mistake)), lesson)
                               for mistake, lesson in _interval_mistakes(correlate, a, b))
        assert distance > 0.25, lesson
    assert _near(result, wanted), (
        f"[{result[0]:.3f}, {result[1]:.3f}] is not the interval, which is about [{wanted[0]:.3f}, {wanted[1]:.3f}]: "
        "500 resamples or more; in each n rows with replacement; means over rows; correlate; 2.5% and 97.5% quantile.")
    print(f"Correct: about [{wanted[0]:.2f}, {wanted[1]:.2f}] around {correlate(a.mean(0), b.mean(0)):.2f}; "
          "not symmetric, as no correlation is above 1.")


def _interval_mistakes(correlate, a, b) -> list:
    """What is resampled by mistake, a function of no arguments, and the lesson."""
    def of_nodes():
        nodes = _drawn(a.shape[1])
        return correlate(a.mean(0)[nodes], b.mean(0)[nodes])

    n = len(a)
    each = torch.tensor([correlate(x, y) for x, y in zip(a, b)])
    return [
        (lambda: correlate(a[_drawn(n)].mean(0), b[_drawn(n)].mean(0)),
         "The two methods were given different examples. Draw once per resample, and use the same rows for both."),
        (of_nodes, "You drew nodes. The model's nodes are all there is; the prompts are a sample: draw examples."),
        (lambda: each[_drawn(n)].mean(), "This is the mean of the examples' own correlations. Correlate the means."),
        (lambda: each[_drawn(n)][0], "This is how single examples spread. Correlate the means over drawn examples."),
    ]


def _drawn(count: int):
    """Indices drawn with replacement."""
    return torch.randint(count, (count,))


def _ends(correlation):
    """The 95% interval of 600 resampled correlations."""
    return torch.quantile(torch.tensor([correlation() for _ in range(600)]), torch.tensor([0.025, 0.975]))


def _distance(interval, other) -> float:
    """The larger distance between the ends of two intervals, in widths of the second."""
    return float((interval - other).abs().max() / (other[1] - other[0]))


def _near(interval, other) -> bool:
    """Whether two intervals agree up to the noise of resampling."""
    return _distance(interval, other) <= 0.25


def _made_up(seed: int) -> numpy.ndarray:
    """One method's lead over another on each of a hundred prompts, made up."""
    return numpy.random.default_rng(seed).normal(0.1, 1.0, 100)


@exercise
def replicated(answer) -> None:
    """Exercise 07.1: `answer(measure, seeds)` is the share of other seeds' means that lie inside a seed's interval.

    >>> replicated(lambda measure, seeds: None)
    Your turn: return one number between 0 and 1.
    """
    result = answer(_made_up, SEEDS)
    if unwritten(result, "return one number between 0 and 1."):
        return
    values = [_made_up(seed) for seed in SEEDS]
    means = numpy.array([each.mean() for each in values])
    intervals = [bootstrap(lambda i, v=each: v[i].mean(), len(each)) for each in values]
    low, high = (numpy.array([getattr(interval, end) for interval in intervals])[:, None] for end in ("low", "high"))
    spread = numpy.array([each.std() for each in values])[:, None]
    other = ~numpy.eye(len(means), dtype=bool)
    inside = (low <= means) & (means <= high)
    wanted = inside[other].mean()
    result = float(result)
    assert 0 <= result <= 1, f"Return a share between 0 and 1, not {result:g}."
    lessons = [
        (inside.mean(), "A seed's own mean always lies inside its interval. Leave out pairs of a seed with itself."),
        ((numpy.abs(means - means[:, None]) <= 1.96 * spread)[other].mean(),
         "That interval is of single prompts, so every mean lies inside. The mean of n prompts varies less: resample "
         "the prompts and take the mean each time."),
        (((low <= 0) & (0 <= high)).mean(), "This asks whether 0 lies inside, which tests whether there is a lead. "
                                            "Here the question is where another seed's mean lies."),
        (((low <= high.T) & (low.T <= high))[other].mean(),
         "Two intervals overlap more often than one holds the other's mean. Ask for the mean."),
    ]
    for wrong, lesson in lessons:
        assert abs(result - wrong) > 0.009, lesson
    assert abs(result - wanted) < 0.009, (
        f"{result:.2f}, but {wanted:.2f} of the pairs are so: for each seed the 95% interval of the mean over prompts, "
        "then the other seeds' means that lie between its ends.")
    print(f"Correct: {wanted:.0%} of these, not 95%, because the other mean varies too.")
