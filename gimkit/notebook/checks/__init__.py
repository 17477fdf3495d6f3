"""The exercises' checks: a stub gets "Your turn", a wrong answer a sentence that teaches, a right one "Correct".

Each check computes the right result from its formula and compares; it also recognises the usual mistakes. A wrong
answer raises AssertionError.
"""

from gimkit.notebook.checks.attribution import attribution_patching
from gimkit.notebook.checks.circuits import areas, cut_circuit, shuffled_scores
from gimkit.notebook.checks.l3d import planted_direction, sparse_reconstruction
from gimkit.notebook.checks.rules import frozen_norm, halved_products, split_gradients, tempered_attention
from gimkit.notebook.checks.saturation import ablation_effects, hidden_from_the_gradient, softmax_backward
from gimkit.notebook.checks.selfrepair import direct_effect, no_compensation, predicted_signs
from gimkit.notebook.checks.statistics import bootstrap_interval, replicated, spearman
from gimkit.notebook.checks.traces import read_a_trace, sandbox_calls, strengths

__all__ = ["ablation_effects", "areas", "attribution_patching", "bootstrap_interval", "cut_circuit", "direct_effect",
           "frozen_norm", "halved_products", "hidden_from_the_gradient", "no_compensation", "planted_direction",
           "predicted_signs", "read_a_trace", "replicated", "sandbox_calls", "shuffled_scores", "softmax_backward",
           "sparse_reconstruction", "spearman", "split_gradients", "strengths", "tempered_attention"]
