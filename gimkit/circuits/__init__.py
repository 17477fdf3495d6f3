"""Which parts of a model do a task, and how to test the answer."""

from gimkit.circuits import known
from gimkit.circuits.chosen_edges import ChosenEdges
from gimkit.circuits.circuit import Circuit
from gimkit.circuits.edges import EdgeScores, score_edges
from gimkit.circuits.faithfulness import Curve, auroc, best_cut, faithfulness, precision_recall, rank_correlation
from gimkit.circuits.head_roles import head_roles
from gimkit.circuits.neurons import NeuronScores, score_neurons
from gimkit.circuits.nodes import NodeScores, score_nodes
from gimkit.circuits.patching import run
from gimkit.circuits.positions import position_scores
from gimkit.circuits.shapley import node_intervals, shapley_nodes
from gimkit.model.graph import Graph
from gimkit.statistics import Interval

__all__ = ["ChosenEdges", "Circuit", "Curve", "EdgeScores", "Graph", "Interval", "NeuronScores", "NodeScores", "auroc",
           "best_cut", "faithfulness", "head_roles", "known", "node_intervals", "position_scores", "precision_recall",
           "rank_correlation", "run", "score_edges", "score_neurons", "score_nodes", "shapley_nodes"]
