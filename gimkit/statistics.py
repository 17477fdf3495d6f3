"""Intervals, rank correlation and AUROC: each once."""

import warnings
from typing import NamedTuple

import numpy
from scipy import stats

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


def bootstrap(statistic, n: int, *, level: float = 0.95, resamples: int = 999, seed: int = 0) -> Interval:
    """The value of statistic(indices of examples) on all n examples, with a percentile interval over examples.

    >>> values = numpy.array([1.0, 2.0, 3.0, 4.0])
    >>> bootstrap(lambda index: values[index].mean(), 4).value
    2.5

    Raises GimkitError for a level outside 0 to 1.
    """
    resamples, seed = check_whole("resamples", resamples), check_whole("seed", seed, 0)
    if not 0 < check_number("level", level) < 1:
        raise GimkitError(f"level is the share of resamples inside the interval, such as 0.95, not {level!r}")
    everything = numpy.arange(n)
    value = float(statistic(everything))
    if n < 2:
        return Interval(value, value, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # an interval of NaN says as much
        interval = stats.bootstrap((everything,), statistic, vectorized=False, n_resamples=resamples,
                                   confidence_level=level, method="percentile",
                                   rng=numpy.random.default_rng(seed)).confidence_interval
    return Interval(value, float(interval.low), float(interval.high))
