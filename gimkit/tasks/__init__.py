"""Prompt pairs with answers: each task gives clean and corrupt prompts of equal token length."""

from gimkit.tasks.facts import agreement, capital, greater_than, hypernymy, induction, pronoun
from gimkit.tasks.names import ioi, ioi_twice, odd_one_out
from gimkit.tasks.own import pairs
from gimkit.tasks.task import Pair, Task

__all__ = ["Pair", "Task", "agreement", "capital", "greater_than", "hypernymy", "induction", "ioi",
           "ioi_twice", "odd_one_out", "pairs", "pronoun"]
