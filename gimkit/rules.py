"""The backward rules as settings: what each changes in the gradient, and the presets by name.

A rule never changes a value of the forward pass. The arithmetic is in `gimkit.interventions`.
"""

from typing import Any, Literal, NamedTuple

from gimkit.errors import GimkitError, check_flag, check_number


class Rules(NamedTuple):
    """What the backward pass does at each place; the defaults are the plain gradient.

    >>> Rules(temperature=2.0, freeze_norm=True).temperature
    2.0
    >>> RULES["gim"].v
    0.5

    Attributes:
        temperature: T of the softmax gradient dL/da = p_T (g - sum p_T g), p_T = softmax(a / T), without a further 1/T
            (GIM's rule "TSG"; the paper has T = 2). a is what the model gives to its softmax: after a softcap, whose
            own derivative stays, with masks, biases and attention sinks.
        freeze_norm: every LayerNorm and RMSNorm keeps its denominator constant; the mean that LayerNorm subtracts
            still has its gradient (GIM's "layernorm freeze").
        q: factor on the gradient of the attention's queries, after rotary embeddings and q/k norms. GIM: 1/4, since
            queries pass two products, and each halves the gradient.
        k: the same for the keys. GIM: 1/4.
        v: the same for the values. GIM: 1/2.
        gate: factor on the gradient of act(gate) in a gated MLP's product act(gate) * up. GIM: 1/2. Fused experts
            (Mixtral, Qwen3-MoE, gpt-oss) are treated alike; the router keeps its plain gradient.
        up: the same for up. GIM: 1/2.
        detach_attention: the attention pattern is a constant, so gradients reach values only.
        identity_activation: the MLP's nonlinearity acts as multiplication by the constant act(x) / x.

    Source:
        arXiv 2505.17630, section "Gradient Interaction Modifications"; RelP: arXiv 2508.21258.
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
OWN_RULES = "own rules"  # the name of rules that are no preset
SPLIT: dict[str, Any] = dict(q=0.25, k=0.25, v=0.5, gate=0.5, up=0.5)
Preset = Literal["gradient", "freeze", "temperature", "gim", "transformer-lrp", "attnlrp", "relp"]

RULES: dict[str, Rules] = {
    "gradient": PLAIN,
    "freeze": Rules(freeze_norm=True),
    "temperature": Rules(temperature=2.0),
    "gim": Rules(temperature=2.0, freeze_norm=True, **SPLIT),
    # Ali et al. 2022, as GIM's evaluation runs it: norms frozen, attention patterns constant.
    "transformer-lrp": Rules(freeze_norm=True, detach_attention=True),
    # AttnLRP (arXiv 2402.05602) as gradients: norms frozen (identity rule), every product halved (uniform rule, so 1/4
    # at q and k, which pass two), activations act(x) / x, and the softmax's plain Jacobian: with relevance as input x
    # gradient, that is their Taylor rule (Proposition 3.1). No epsilon.
    "attnlrp": Rules(freeze_norm=True, identity_activation=True, **SPLIT),
    # RelP, as its README runs it (LN, identity and half rule); its optional AH rule is detach_attention=True.
    "relp": Rules(freeze_norm=True, identity_activation=True, gate=0.5, up=0.5),
}
"""All presets by name. `gimkit.apply` and every scoring function take the names. docs/METHODS.md compares them."""

GIM = RULES["gim"]
"""GIM's rules: temperature 2, norms frozen, products split."""


def rules_of(rules: Rules | str) -> Rules:
    """Rules from their name.

    >>> rules_of("freeze").freeze_norm
    True

    Args:
        rules: a preset's name, or `Rules`, whose settings are checked.

    Raises:
        GimkitError: an unknown name (the message lists all names), or a setting as in `checked_rules`.
    """
    if isinstance(rules, Rules):
        return checked_rules(rules)
    if not isinstance(rules, str) or rules not in RULES:
        raise GimkitError(f"unknown rules {rules!r}; use a gimkit.Rules, or one of {', '.join(RULES)}")
    return RULES[rules]


def name_of(method: str | Rules) -> str:
    """A method's name in results: rules of the user's have none.

    >>> name_of("gim"), name_of(Rules(temperature=3.0))
    ('gim', 'own rules')
    """
    return method if isinstance(method, str) else OWN_RULES


def checked_rules(rules: Rules) -> Rules:
    """The same rules, each setting checked.

    >>> checked_rules(Rules(freeze_norm="no"))
    Traceback (most recent call last):
    gimkit.errors.GimkitError: Rules(freeze_norm=...) must be True or False, not 'no'

    Raises:
        GimkitError: a factor that is not a finite number, a flag that is not True or False, a temperature not above 0.
    """
    settings: dict[str, Any] = {
        name: (check_flag if isinstance(default, bool) else check_number)(f"Rules({name}=...)", getattr(rules, name))
        for name, default in PLAIN._asdict().items()}
    checked = Rules(**settings)
    if checked.temperature <= 0:
        raise GimkitError(f"temperature must be above 0, not {checked.temperature}")
    return checked
