"""Prompt pairs with answers: each task gives clean and corrupt prompts of equal token length."""

from gimkit.tasks.task import Pair, Task

__all__ = ["Pair", "Task"]
