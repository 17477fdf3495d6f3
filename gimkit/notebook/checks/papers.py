"""The check of notebook 07, the papers' figures."""

import numpy

from gimkit.notebook.checks.answers import unwritten
from gimkit.statistics import bootstrap

SEEDS = range(306_000, 306_008)  # of these no mean lies near an end of an interval, whichever prompts are resampled


def made_up(seed: int) -> numpy.ndarray:
    """A hundred leads on prompts that nobody ran."""
    return numpy.random.default_rng(seed).normal(0.1, 1.0, 100)


def replicated(answer) -> None:
    """Exercise 07.1: `answer(measure, seeds)` is the share of other seeds' means inside a seed's interval."""
    result = answer(made_up, SEEDS)
    if unwritten(result, "return how often another seed's mean lies inside a seed's interval."):
        return
    values = [made_up(seed) for seed in SEEDS]
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
    print(f"Correct: {wanted:.0%} of these, not 95%, for the other mean wobbles too.")
