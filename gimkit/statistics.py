"""An estimate with its bootstrap interval."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy
from numpy.typing import ArrayLike

from gimkit.errors import GimkitError, check_number, check_whole


class Interval(NamedTuple):
    """An estimate with its bootstrap interval.

    >>> print(Interval(value=0.931, low=0.907, high=0.952))
    0.93 [0.91, 0.95]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(statistic: Callable[[numpy.ndarray], float], n: int, *, level: float = 0.95, resamples: int = 999,
              seed: int = 0) -> Interval:
    """A statistic on all n examples, with a percentile interval over examples.

    >>> values = numpy.array([1.0, 2.0, 3.0, 4.0])
    >>> bootstrap(lambda index: values[index].mean(), 4).value
    2.5

    Args:
        statistic: a function of indices of examples [n], drawn with replacement.
        n: the number of examples.
        level: the interval's share of the resamples, between 0 and 1.
        resamples: how many times n examples are drawn.
        seed: of the draws.

    Returns:
        The `Interval`. With one example, low and high are the value itself.

    Raises:
        GimkitError: a level that is not between 0 and 1.
    """
    resamples, seed = check_whole("resamples", resamples), check_whole("seed", seed, 0)
    if not 0 < check_number("level", level) < 1:
        raise GimkitError(f"level is the interval's share of the resamples, such as 0.95, not {level!r}")
    from scipy import stats  # slow to import

    everything = numpy.arange(n)
    value = float(statistic(everything))
    if n < 2:
        return Interval(value, value, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # the interval is then NaN, which says the same
        interval = stats.bootstrap((everything,), statistic, vectorized=False, n_resamples=resamples,
                                   confidence_level=level, method="percentile",
                                   rng=numpy.random.default_rng(seed)).confidence_interval
    return Interval(value, float(interval.low), float(interval.high))


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """The chance that a positive sample's score is above a negative one's; ties count one half. NaN without both kinds.

    >>> auroc(numpy.array([0.1, 0.4, 0.35, 0.8]), numpy.array([False, False, True, True]))
    0.75

    Args:
        scores: a vector [n], of numpy or torch.
        positive: which of them are positive, [n].
    """
    from scipy import stats  # slow to import

    positive, ranks = numpy.asarray(positive, dtype=bool), stats.rankdata(scores)
    n, m = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")
