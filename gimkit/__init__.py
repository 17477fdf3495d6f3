"""gimkit: interpretability of transformer language models on nnsight, with GIM's backward rules.

All examples in these docstrings are run as tests, with these names at hand:

>>> model = gimkit.load("mini-llama")                            # 5 layers of 4 heads, width 128
>>> task = gimkit.tasks.ioi(model, n=64)                         # 64 prompt pairs
>>> edges = gimkit.score_edges(model, task)
>>> nodes = gimkit.score_nodes(model, task)
>>> circuit = edges.top(100)
>>> curve = gimkit.faithfulness(model, task[:16], edges, absolute=True)
"""

import transformers

if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17):  # 5.0 gives wrong gradients with sdpa
    raise ImportError(f"gimkit needs transformers 5.17 or newer, and {transformers.__version__} is installed; "
                      "pip install --upgrade transformers, or install gimkit again")

from gimkit import circuits, l3d, selfrepair, tasks, tokens
from gimkit.circuits import faithfulness, run, score_edges, score_nodes
from gimkit.errors import GimkitError
from gimkit.model.apply import apply, receipt, remove
from gimkit.model.load import load
from gimkit.notebook.explorer import explore
from gimkit.remote import register
from gimkit.remote.check import check
from gimkit.remote.jobs import submit
from gimkit.rules import RULES, Rules
from gimkit.selfrepair import self_repair
from gimkit.tokens import attribute

__version__ = "0.2.0"
# Sixteen names, and the packages that hold the rest.
__all__ = ["GimkitError", "RULES", "Rules", "apply", "attribute", "check", "explore", "faithfulness", "load", "receipt",
           "remove", "run", "score_edges", "score_nodes", "self_repair", "submit",
           "circuits", "l3d", "selfrepair", "tasks", "tokens"]

register()
