"""The one place that puts rules into a model: `apply`, and the receipt of which rule acts where."""

from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import torch
from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError
from gimkit.interventions.backward_rules import (
    freeze_norm,
    linearise_activation,
    soften_attention,
    split_input,
    split_output,
)
from gimkit.interventions.weights import holds_weight
from gimkit.model.architecture import Architecture, Product, architecture_of, projections
from gimkit.rules import OWN_RULES, RULES, Preset, Rules, rules_of


def apply(model: Envoy, rules: Preset | Rules = "gim") -> Envoy:
    """Return an edited copy of a model: the same forward pass, bit for bit, with another backward pass.

    >>> gim = gimkit.apply(gimkit.load("mini-gpt2"))
    >>> with gim.trace("Mary and John went home"):
    ...     embedding = gim.transformer.wte.output.detach().requires_grad_(True)      # [1, seq, width]
    ...     gim.transformer.wte.output = embedding
    ...     gradient = torch.autograd.grad(gim.output.logits[0, -1].max(), embedding)[0].save()

    The rules act in traces only: calling the copy itself, or letting it generate, raises GimkitError. Its `_module` is
    the original's and has no rules.

    Args:
        model: an nnsight model (TransformersModel, or NNsight around a transformers model). It stays unchanged.
        rules: `Rules`, or the name of a preset in `gimkit.RULES` ("gim", "gradient", "freeze", "relp", ...).

    Returns:
        The edited copy.

    Raises:
        GimkitError: a rule that could not act exactly, with the module's name; a model that has rules already.

    Source:
        arXiv 2505.17630. Unlike in the authors' package, every rule acts with sdpa, eager and flash attention alike
        and on RMSNorm and q/k norms, and Gemma's softcaps keep their own derivative.
    """
    rules, architecture = rules_of(rules), architecture_of(model)
    check_unedited(model)
    check_differentiable(model, architecture)
    places = placements(architecture, rules)
    first = len(model._edits)
    edited = model._shallow_copy()
    edited.__class__, edited._original = _traced_only(type(model)), model  # type: ignore[arg-type]
    for act, path, arguments in (place for group in places.values() for place in group):
        _place(edited, act, path, arguments)
    edited._gimkit = _Record(
        rules=rules._asdict(),
        places={rule: [path for _, path, _ in group] for rule, group in places.items()},
        span=(first, len(edited._edits)),
    )
    return edited


class _Record(dict):
    """What `apply` did to a model. It is not sent to servers: they get an empty dict."""

    def __reduce__(self) -> tuple:
        return dict, ()


@cache
def _traced_only(kind: type) -> type:
    """The class of an edited model: nnsight's own, but running it without the rules raises GimkitError."""
    class Edited(kind):
        def __call__(self, *inputs: Any, **options: Any) -> Any:
            if not self.interleaver.interleaving:
                raise GimkitError("outside a trace an edited model would run without its rules: use "
                                  "`with model.trace(...)`, or call the original")
            return super().__call__(*inputs, **options)

        def generate(self, *inputs: Any, **options: Any) -> NoReturn:
            raise GimkitError("text is generated without gradients, so rules change nothing: let the original generate")

        pipe = generate

        def dispatch(self) -> None:  # weights are loaded once, for the original and all its copies
            self._original.dispatch()
            self._module, self.dispatched = self._original._module, True

        def __reduce_ex__(self, protocol: Any) -> tuple:  # a server has nnsight's class only
            make, (_, *rest), state = super().__reduce_ex__(0)
            return make, (kind, *rest), {key: value for key, value in state.items() if key != "_original"}

        def _remoteable_class(self) -> Any:
            plain = self._shallow_copy()
            plain.__class__ = kind
            return plain._remoteable_class()

    Edited.__name__ = Edited.__qualname__ = kind.__name__
    return Edited


def check_unedited(model: Envoy) -> None:
    """Refuse a model that has rules already: without an error they would add up.

    >>> check_unedited(gimkit.load("mini-gpt2"))
    """
    if "_gimkit" in vars(model):
        raise GimkitError(f"this model already carries the rules {receipt(model).name}; "
                          "give the original, or gimkit.remove(model)")


def check_differentiable(model: Envoy, architecture: Architecture) -> None:
    """Refuse quantised projections that let no gradient through: without an error it would skip them.

    >>> check_differentiable(model, architecture_of(model))
    """
    root = model._module
    trunk, dtype = architecture.blocks[0].path.rpartition(".")[0], root.get_input_embeddings().weight.dtype
    for path in projections(root.get_submodule(trunk), trunk):
        module = root.get_submodule(path)
        tensors = [*module.parameters(), *module.buffers()]
        if holds_weight(module) or any(tensor.is_meta for tensor in tensors):
            continue
        device = tensors[0].device if tensors else model.device
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.ones(1, module.in_features, dtype=dtype, device=device, requires_grad=True)
            y = module(x)
            if not isinstance(y, torch.Tensor):  # a router, whose choice has no gradient
                continue
            slope = torch.autograd.grad(y.sum(), x, allow_unused=True)[0] if y.requires_grad else None
        if slope is None or not bool(slope.any()):
            raise GimkitError(f"{architecture.name}: {path} ({type(module).__name__}) lets no gradient through; "
                              "load full-precision weights, or use 'exact' or 'occlusion', which need none")


def _place(edited: Envoy, act: Callable, path: str, arguments: tuple) -> None:
    with edited.edit(inplace=True):  # else each edit would make a copy, which would travel to a server with it
        act(edited.get(path), *arguments)


def placements(architecture: Architecture, rules: Rules) -> dict[str, list[tuple]]:
    """Which function acts at which module: {rule: [(function, path, arguments), ...]}, only for rules that are on."""
    places: dict[str, list[tuple]] = {}
    if rules.freeze_norm:
        places["norm frozen"] = [(freeze_norm, norm.path, tuple(norm)) for norm in architecture.norms]
    softmax = (rules.temperature, rules.q, rules.k, rules.v, rules.detach_attention)
    if softmax != (1, 1, 1, 1, False):
        label = "attention constant" if rules.detach_attention else f"softmax at T={rules.temperature:g}"
        label += f", q x{rules.q:g}, k x{rules.k:g}, v x{rules.v:g}"
        places[label] = [(soften_attention, b.attention, (b.attention, *softmax)) for b in architecture.blocks]
    products = [product for block in architecture.blocks for product in block.products]
    if (rules.gate, rules.up) != (1, 1) and products:
        places[f"product, gate x{rules.gate:g}, up x{rules.up:g}"] = [
            place for product in products for place in _split(product, rules, architecture.name)
        ]
    if rules.identity_activation:
        missing = next((block.mlp for block in architecture.blocks if block.activation is None), None)
        if missing:
            raise GimkitError(f"{architecture.name}: {missing} has no activation module of its own, "
                              "so identity_activation cannot act there")
        places["activation linearised"] = [(linearise_activation, b.activation, ()) for b in architecture.blocks]
    return places


def _split(product: Product, rules: Rules, architecture: str) -> list[tuple]:
    if rules.gate == rules.up:
        return [(split_input, product.path, (rules.gate,))]
    if not product.branches:
        raise GimkitError(f"{architecture}: the gate and up branches of {product.path} are fused, "
                          "so they can only be scaled alike (gate == up)")
    return [(split_output, path, (factor,)) for path, factor in zip(product.branches, (rules.gate, rules.up))]


def remove(model: Envoy) -> Envoy:
    """Return a copy of an edited model without gimkit's rules; edits of your own stay.

    >>> plain = gimkit.remove(gimkit.apply(model))

    Args:
        model: of `gimkit.apply`.

    Returns:
        The copy.

    Raises:
        GimkitError: the model has no rules.
    """
    first, last = _record(model)["span"]
    plain = model._shallow_copy()
    plain.__class__ = type(model).__base__
    plain._edits = model._edits[:first] + model._edits[last:]
    del plain._gimkit, plain._original
    return plain


class Receipt:
    """Which rule acts at which modules of an edited model; prints as a table.

    >>> Receipt(RULES["freeze"], {"norm frozen": ["transformer.h.0.ln_1", "transformer.ln_f"]})
    rules: freeze
      norm frozen: 2 modules, transformer.h.0.ln_1 ... transformer.ln_f

    Attributes:
        rules: the `Rules` in force.
        places: {rule: [module path, ...]}.
        name: the preset's name, or "own rules".
    """

    def __init__(self, rules: Rules, places: dict[str, list[str]]):
        self.rules, self.places = rules, places
        self.name = next((name for name, preset in RULES.items() if preset == rules), OWN_RULES)

    def __repr__(self) -> str:
        lines = [f"rules: {self.name}"]
        for rule, paths in self.places.items():
            span = paths[0] if len(paths) == 1 else f"{paths[0]} ... {paths[-1]}"
            lines.append(f"  {rule}: {len(paths)} modules, {span}")
        return "\n".join(lines if self.places else [*lines, "  nothing: this is the plain gradient"])


def receipt(model: Envoy) -> Receipt:
    """Report which rule acts where in an edited model.

    >>> print(receipt(gimkit.apply(gimkit.load("mini-gpt2"))))
    rules: gim
      norm frozen: ... modules, transformer.h.0.ln_1 ... transformer.ln_f
      softmax at T=2, q x0.25, k x0.25, v x0.5: ... modules, ...

    Args:
        model: of `gimkit.apply`.

    Returns:
        A `Receipt`: `.rules`, and `.places` with the modules by rule.

    Raises:
        GimkitError: the model has no rules.
    """
    record = _record(model)
    return Receipt(Rules(**record["rules"]), record["places"])


def _record(model: Envoy) -> dict:
    record = vars(model).get("_gimkit")
    if record is None:
        raise GimkitError("this model carries no gimkit rules; make an edited copy with gimkit.apply(model)")
    return record
