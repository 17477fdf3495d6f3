"""Which tokens of a prompt a prediction depends on, and how to test that."""

from gimkit.tokens.attribute import METHODS, TokenScores, attribute
from gimkit.tokens.faithfulness import TokenFaithfulness, token_faithfulness
from gimkit.tokens.layers import layer_faithfulness, layer_scores
from gimkit.tokens.shapley import shapley

__all__ = ["METHODS", "TokenFaithfulness", "TokenScores", "attribute", "layer_faithfulness", "layer_scores", "shapley",
           "token_faithfulness"]
