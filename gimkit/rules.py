"""The backward rules as settings, and the tensor arithmetic that realises them.

A rule never changes a value, only the gradient that flows through it:
`scale_grad` multiplies it, `with_grad_of` takes it from another tensor.
"""

from typing import NamedTuple

from gimkit.errors import GimkitError, check_flag, check_number


class Rules(NamedTuple):
    """What the backward pass does at each place; the defaults are the plain gradient.

    >>> Rules(temperature=2.0, freeze_norm=True).temperature
    2.0
    >>> RULES["gim"].v
    0.5

    temperature: softmax gradient at this temperature, dL/da = p_T (g - sum p_T g), p_T = softmax(a / T),
        without a further 1/T (GIM, rule "TSG"; T = 2 in the paper). The softmax row is what the model
        feeds it: after a softcap (whose own derivative stays), with masks, biases and attention sinks.
    freeze_norm: every LayerNorm and RMSNorm keeps its denominator constant; LayerNorm's centring is
        still differentiated (GIM, "layernorm freeze").
    q, k, v: factors on the gradients of the attention's queries, keys and values, after rotary
        embeddings and q/k norms (GIM: 1/4, 1/4, 1/2: two products, each split in halves).
    gate, up: factors on the two branches of a gated MLP's product act(gate) * up (GIM: 1/2 and 1/2).
        Fused experts (Mixtral, Qwen3-MoE, gpt-oss) likewise; the router keeps its plain gradient.
    detach_attention: the attention pattern is a constant, so gradients reach values only.
    identity_activation: the MLP's nonlinearity acts as multiplication by the constant act(x) / x.

    Source: arXiv 2505.17630, section "Gradient Interaction Modifications"; RelP: arXiv 2508.21258.
    """

    temperature: float = 1.0
    freeze_norm: bool = False
    q: float = 1.0
    k: float = 1.0
    v: float = 1.0
    gate: float = 1.0
    up: float = 1.0
    detach_attention: bool = False
    identity_activation: bool = False


PLAIN = Rules()
SPLIT = dict(q=0.25, k=0.25, v=0.5, gate=0.5, up=0.5)

LADDER = {
    "gradient": PLAIN,
    "freeze": Rules(freeze_norm=True),
    "split": Rules(**SPLIT),
    "temperature": Rules(temperature=2.0),
    "freeze+split": Rules(freeze_norm=True, **SPLIT),
    "freeze+temperature": Rules(freeze_norm=True, temperature=2.0),
    "split+temperature": Rules(temperature=2.0, **SPLIT),
    "gim": Rules(temperature=2.0, freeze_norm=True, **SPLIT),
}
"""The rows of GIM's ablation table by name, from the plain gradient to the whole."""

GIM = LADDER["gim"]
"""GIM's rules: temperature 2, norms frozen, products split."""

RULES = LADDER | {
    # Ali et al. 2022 as GIM's evaluation runs it: norms frozen, attention patterns constant.
    "transformer-lrp": Rules(freeze_norm=True, detach_attention=True),
    # AttnLRP (arXiv 2402.05602) as gradients: norms frozen (identity rule), every product halved (uniform rule, so 1/4
    # at q and k, which pass two), activations act(x) / x, and the softmax's plain Jacobian, which is what its Taylor
    # rule (their Proposition 3.1) amounts to when relevance is input x gradient. No epsilon.
    "attnlrp": Rules(freeze_norm=True, identity_activation=True, **SPLIT),
    # RelP as its README runs it (LN, identity and half rule); its optional AH rule is detach_attention=True.
    "relp": Rules(freeze_norm=True, identity_activation=True, gate=0.5, up=0.5),
}
"""All presets by name: those of LADDER, and other methods that are backward rules. `gimkit.apply` takes the names."""


def rules_of(method: str | Rules) -> Rules:
    """The rules that a gradient method runs under, or an error that lists them."""
    if isinstance(method, Rules):
        return checked_rules(method)
    if method not in RULES:
        raise GimkitError(f"unknown method {method!r}; use a gimkit.Rules, or one of {', '.join(RULES)}")
    return RULES[method]


def checked_rules(rules: Rules) -> Rules:
    """The same rules, every setting a finite number, or True or False.

    >>> checked_rules(Rules(freeze_norm="no"))
    Traceback (most recent call last):
    gimkit.errors.GimkitError: Rules(freeze_norm=...) must be True or False, not 'no'

    Raises GimkitError for any other setting, and for a temperature that is not above 0.
    """
    checked = Rules(*((check_flag if isinstance(default, bool) else check_number)(f"Rules({name}=...)", value)
                      for (name, default), value in zip(Rules()._asdict().items(), rules)))
    if checked.temperature <= 0:
        raise GimkitError(f"temperature must be above 0, not {checked.temperature}")
    return checked
