"""Which parts of a model do a task, and how to test the answer."""

from gimkit.circuits.edges import EdgeScores, score_edges
from gimkit.circuits.files import load_edges, save_edges
from gimkit.circuits.graph import Circuit, Graph
from gimkit.circuits.metrics import Curve, Interval, auroc, faithfulness, precision_recall, rank_correlation
from gimkit.circuits.patching import run
from gimkit.circuits.scores import NodeScores, score_nodes

__all__ = ["Circuit", "Curve", "EdgeScores", "Graph", "Interval", "NodeScores", "auroc", "faithfulness", "load_edges",
           "precision_recall", "rank_correlation", "run", "save_edges", "score_edges", "score_nodes"]
