"""gimkit: interpretability of transformer language models on nnsight, with GIM's backward rules."""

from gimkit.edits import apply, receipt, remove
from gimkit.errors import GimkitError
from gimkit.rules import GIM, LADDER, RULES, Rules

__all__ = ["GIM", "LADDER", "RULES", "GimkitError", "Rules", "apply", "receipt", "remove"]
