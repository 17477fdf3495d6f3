"""How well scores, and the circuits cut from them, agree with the truth."""

from typing import NamedTuple

import numpy
from scipy import stats

from gimkit.errors import GimkitError


class Interval(NamedTuple):
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def rank_correlation(scores, truth, *, level: float = 0.95, resamples: int = 999, seed: int = 0) -> Interval:
    """Spearman's rank correlation of two methods' mean node scores, with a bootstrap interval over examples.

    >>> rank_correlation(gim, exact)                             # two NodeScores of the same task
    Interval(value=0.91, low=0.85, high=0.94)

    scores, truth: `NodeScores` with the same nodes and examples; "input" is left out, for it is no component.
    level, resamples, seed: of the percentile bootstrap (scipy.stats.bootstrap), which draws whole examples.
    Raises GimkitError when nodes or examples differ.
    """
    if scores.nodes != truth.nodes or len(scores.per_example) != len(truth.per_example):
        raise GimkitError("the two scores are of different nodes or examples; score both on the same model and task")
    keep = [i for i, name in enumerate(scores.nodes) if name != "input"]
    a, b = scores.per_example[:, keep].double().numpy(), truth.per_example[:, keep].double().numpy()

    def statistic(index):
        return stats.spearmanr(a[index].mean(0), b[index].mean(0)).statistic

    everything = numpy.arange(len(a))
    value = float(statistic(everything))
    if len(a) < 2:
        return Interval(value, value, value)
    interval = stats.bootstrap((everything,), statistic, vectorized=False, n_resamples=resamples,
                               confidence_level=level, method="percentile",
                               rng=numpy.random.default_rng(seed)).confidence_interval
    return Interval(value, float(interval.low), float(interval.high))
