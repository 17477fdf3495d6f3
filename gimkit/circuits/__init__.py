"""Which parts of a model do a task, and how to test the answer."""

from gimkit.circuits.metrics import Interval, rank_correlation
from gimkit.circuits.scores import NodeScores, score_nodes

__all__ = ["Interval", "NodeScores", "rank_correlation", "score_nodes"]
