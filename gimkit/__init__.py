"""gimkit: interpretability of transformer language models on nnsight, with GIM's backward rules.

All examples in these docstrings are run as tests, with these names at hand:

>>> model = gimkit.load("mini-llama")                            # 5 layers of 4 heads, width 128
>>> task = gimkit.tasks.ioi(model, n=64)                         # 64 prompt pairs
>>> edges = gimkit.score_edges(model, task)
>>> nodes = gimkit.score_nodes(model, task)
>>> circuit = edges.top(100)
>>> curve = gimkit.faithfulness(model, task[:16], edges, absolute=True)
"""

from gimkit import circuits, l3d, tasks
from gimkit.circuits import faithfulness, rank_correlation, run, score_edges, score_neurons, score_nodes
from gimkit.errors import GimkitError
from gimkit.model.apply import apply, receipt, remove
from gimkit.model.load import load
from gimkit.notebook.explorer import explore
from gimkit.remote import register
from gimkit.remote.check import check
from gimkit.remote.jobs import submit
from gimkit.rules import GIM, LADDER, RULES, Rules
from gimkit.selfrepair import head_repair, self_repair
from gimkit.tokens import attribute
from gimkit.tokens.faithfulness import token_faithfulness
from gimkit.tokens.shapley import shapley

__version__ = "0.2.0"
__all__ = ["GIM", "GimkitError", "LADDER", "RULES", "Rules", "apply", "attribute", "check", "circuits", "explore",
           "faithfulness", "head_repair", "l3d", "load", "rank_correlation", "receipt", "remove", "run", "score_edges",
           "score_neurons", "score_nodes", "self_repair", "shapley", "submit", "tasks", "token_faithfulness"]

register()
