"""Tasks: clean and corrupt prompts of equal token length, with right and wrong answers."""

from gimkit.tasks.facts import agreement, capital, greater_than, hypernymy, induction, pronoun
from gimkit.tasks.measure import Card, card
from gimkit.tasks.mib import mib
from gimkit.tasks.names import ioi, ioi_twice, odd_one_out
from gimkit.tasks.own import pairs
from gimkit.tasks.task import Pair, Task
from gimkit.tasks.texts import Texts, load_texts

__all__ = ["Card", "Pair", "Task", "Texts", "agreement", "capital", "card", "greater_than", "hypernymy", "induction",
           "ioi", "ioi_twice", "load_texts", "mib", "odd_one_out", "pairs", "pronoun"]
