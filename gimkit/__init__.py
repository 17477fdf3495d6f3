"""gimkit: interpretability of transformer language models on nnsight, with GIM's backward rules."""

from gimkit.circuits import rank_correlation, score_nodes
from gimkit.edits import apply, receipt, remove
from gimkit.errors import GimkitError
from gimkit.remote import register
from gimkit.rules import GIM, LADDER, RULES, Rules
from gimkit.tokens import attribute

__all__ = ["GIM", "LADDER", "RULES", "GimkitError", "Rules", "apply", "attribute", "rank_correlation", "receipt",
           "remove", "score_nodes"]

register()
