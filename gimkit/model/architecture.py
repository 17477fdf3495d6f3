"""Where a model's norms, attention, gated products and embeddings are.

All is read on the client from config, module names and source code, so a model without weights will do.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from nnsight.intervention.envoy import Envoy
from torch.nn import Module
from transformers.pytorch_utils import Conv1D

from gimkit.errors import GimkitError

SOURCES: WeakKeyDictionary = WeakKeyDictionary()  # {forward function: its source text}, since reading a source is slow
LINEAR = (torch.nn.Linear, Conv1D)
OUTPUT_PROJECTIONS = ("o_proj", "c_proj", "out_proj", "dense", "wo")
NOT_COVERED = (
    "use a decoder-only model whose attention runs through transformers' attention_interface: "
    "GPT-2, Llama, Mistral, Qwen, Gemma, GPT-NeoX (Pythia), Phi, OLMo, Mixtral, gpt-oss or a relative of them"
)


class Norm(NamedTuple):
    """A LayerNorm or RMSNorm: what is needed to recompute it.

    Attributes:
        path: of the module, below the model.
        eps: the constant added to the variance.
        centred: a LayerNorm, which subtracts the mean.
    """

    path: str
    eps: float
    centred: bool


class Product(NamedTuple):
    """A gated product act(gate) * up, and where its gradient can be scaled.

    Attributes:
        path: the module at whose input the gradient is scaled.
        kind: "down" (that module is a down projection) or "experts" (fused experts; the first input).
        branches: paths of the gate and up projections, when they are separate modules.
    """

    path: str
    kind: str
    branches: tuple[str, ...]


class Block(NamedTuple):
    """One transformer block, as paths below the model.

    Attributes:
        path: of the block.
        attention: the module that calls attention_interface.
        output: the attention's output projection, whose input holds the heads side by side.
        mlp: the module whose output is what the MLP writes, before any norm that follows.
        products: the MLP's gated products; none in an MLP without gate.
        activation: the MLP's activation module; None where it has none of its own.
    """

    path: str
    attention: str
    output: str
    mlp: str
    products: tuple[Product, ...]
    activation: str | None


class Architecture(NamedTuple):
    """A model's parts, in names and numbers.

    Attributes:
        name: the model's class.
        embedding: path of the token embedding.
        blocks: in order.
        norms: all of the trunk, q/k norms and the final norm among them.
        n_heads: query heads of a block.
        head_dim: width of a head.
        experts: some MLP is a mixture of experts.
    """

    name: str
    embedding: str
    blocks: tuple[Block, ...]
    norms: tuple[Norm, ...]
    n_heads: int
    head_dim: int
    experts: bool


class Unembedding(NamedTuple):
    """The module that makes logits.

    Attributes:
        all_positions: it must run at all positions, since edits or hooks of the user's may depend on their number.
    """

    path: str
    all_positions: bool


def architecture_of(model: Envoy) -> Architecture:
    """Find the parts of an nnsight model that gimkit's rules and scores act on.

    >>> parts = architecture_of(gimkit.load("mini-gpt2"))
    >>> parts.blocks[0].output, parts.n_heads
    ('transformer.h.0.attn.c_proj', 4)

    Args:
        model: an nnsight model (TransformersModel, or NNsight around a transformers model), with or without weights.

    Raises:
        GimkitError: a part on which the rules could not act exactly, with the module's name.
    """
    root = _root(model)
    name, config = type(root).__name__, root.config
    if getattr(getattr(root, "active_peft_config", None), "is_prompt_learning", False):
        raise GimkitError(f"{name} puts virtual tokens before the prompt, so positions are not the prompt's; use the "
                          "model without this adapter, or a LoRA")
    if getattr(config, "is_encoder_decoder", False):
        raise GimkitError(f"{name} is an encoder-decoder model; {NOT_COVERED}")
    config = config.get_text_config()
    stack, layers = _layers(root, name)
    norms = _norms(root, stack.rpartition(".")[0], name)
    blocks = tuple(_block(f"{stack}.{i}", layer, name) for i, layer in enumerate(layers))
    _check_norms_everywhere(norms, blocks, name)
    _check_called_once(root, norms, blocks, name)
    embedding = root.get_input_embeddings()
    heads = next(getattr(config, key) for key in ("num_attention_heads", "n_head", "n_heads") if hasattr(config, key))
    return Architecture(
        name=name,
        embedding=next(path for path, module in root.named_modules() if module is embedding),
        blocks=blocks,
        norms=norms,
        n_heads=heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        experts=any(p.kind == "experts" for block in blocks for p in block.products),
    )


def limits(model: Envoy) -> tuple[int, int | None]:
    """How many token ids a model knows, and how many tokens its context holds (None: no limit).

    >>> limits(model)
    (561, 64)
    """
    root = _root(model)
    context = getattr(root.config.get_text_config(), "max_position_embeddings", None)
    return root.get_input_embeddings().weight.shape[0], context


def unembedding_of(model: Envoy) -> Unembedding:
    """The module that makes logits of the last residual stream.

    >>> unembedding_of(gimkit.load("mini-gpt2"))
    Unembedding(path='lm_head', all_positions=False)

    Args:
        model: an nnsight model, with or without weights.

    Raises:
        GimkitError: there is none, as in a trunk or a classifier.
    """
    root = _root(model)
    wanted = root.get_output_embeddings()
    if wanted is None:
        raise GimkitError(f"{type(root).__name__} has no output embeddings, so it gives no logits of tokens; load the "
                          "causal language model, such as with AutoModelForCausalLM")
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (root, wanted))
    return Unembedding(next(path for path, module in root.named_modules() if module is wanted),
                       bool(model._edits or hooked))


def rows_may_join(model: Envoy, architecture: Architecture) -> bool:
    """Whether blocks may run on more rows than the ids have: nothing else in the model depends on the number of rows.

    >>> rows_may_join(model, architecture_of(model))
    True

    A hook or an edit of the user's may, and GPT-BigCode's trunk gives its output the shape of the ids.
    """
    trunk = _source(model._module.get_submodule(architecture.blocks[0].path.rsplit(".", 2)[0]))
    reshaped = "view(output_shape)" in trunk and not re.search(r"output_shape = \(\s*-1", trunk)
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in model._module.modules())
    return not (reshaped or hooked or model._edits)


def rows_at_once(model: Envoy, tokens: int, most: int = 2**22) -> int:
    """How many prompts a forward pass takes: the residual stream holds at most 2^22 numbers, 16 MiB in float32.

    >>> rows_at_once(model, 24)
    1365
    """
    return max(1, most // (tokens * _root(model).get_input_embeddings().weight.shape[1]))


def _root(model: Envoy) -> Any:
    root = getattr(model, "_module", None)
    if getattr(root, "config", None) is None or not hasattr(model, "trace"):
        raise GimkitError(
            f"{type(model).__name__} is not an nnsight model around a transformers model; "
            "use gimkit.load(...) or nnsight.NNsight(hf_model)"
        )
    return root


def _source(module: torch.nn.Module) -> str:
    """The source of a module's forward; kept for each function, so that a replaced forward or module is read again."""
    forward = inspect.unwrap(type(module).forward)
    if forward not in SOURCES:
        try:
            SOURCES[forward] = textwrap.dedent(inspect.getsource(forward))
        except (OSError, TypeError):
            return ""
    return SOURCES[forward]


def _attention_calls(module: torch.nn.Module) -> int:
    """How often a module's forward calls attention_interface."""
    return _source(module).count("attention_interface(")


def _layers(root: Module, name: str) -> tuple[str, torch.nn.ModuleList]:
    """The stack of blocks: the longest ModuleList outside vision and audio towers."""
    towers = ("vision", "visual", "audio")
    lists = [
        (path, module)
        for path, module in root.named_modules()
        if isinstance(module, torch.nn.ModuleList) and not any(word in path for word in towers)
        and any("attn" in key.lower() or "attention" in key.lower() or "mixer" in key.lower()
                for block in module for key, _ in block.named_modules())
    ]
    if not lists:
        raise GimkitError(f"{name} has no stack of attention blocks; {NOT_COVERED}")
    path, layers = max(lists, key=lambda item: len(item[1]))
    if not path.rpartition(".")[0]:
        raise GimkitError(f"{name} keeps its blocks at the top level; wrap the causal language model, not its trunk")
    return path, layers


def _block(path: str, layer: Module, name: str) -> Block:
    attentions = [key for key, module in layer.named_modules() for _ in range(_attention_calls(module))]
    if len(attentions) != 1:
        other = next((k for k, m in layer.named_modules()
                      if type(m).__name__.endswith(("Attention", "Mixer"))), None)
        where = f"{path}.{other} ({type(layer.get_submodule(other)).__name__})" if other else path
        problem = "does not call attention_interface" if not attentions else "calls attention_interface more than once"
        raise GimkitError(f"{name}: {where} {problem}, so the attention rules cannot act there; {NOT_COVERED}")
    attention = layer.get_submodule(attentions[0])
    if re.search(r"attention_interface\([^()]*attention_mask=", _source(attention)):
        raise GimkitError(f"{name}: {path}.{attentions[0]} gives attention_interface its mask by name, so the "
                          f"attention rules cannot act there; {NOT_COVERED}")
    if getattr(attention, "reorder_and_upcast_attn", False):
        raise GimkitError(f"{name}: {path}.{attentions[0]} has reorder_and_upcast_attn, which bypasses "
                          "attention_interface; load the model with reorder_and_upcast_attn=False")
    output = next((key for key in OUTPUT_PROJECTIONS if is_projection(getattr(attention, key, None))), None)
    if output is None:
        raise GimkitError(f"{name}: {path}.{attentions[0]} has no output projection that gimkit knows "
                          f"({', '.join(OUTPUT_PROJECTIONS)})")
    mlp, module = _mlp(layer, attentions[0], path, name)
    products, activation = _gating(f"{path}.{mlp}", module, layer, path, name)
    return Block(path, f"{path}.{attentions[0]}", f"{path}.{attentions[0]}.{output}", f"{path}.{mlp}",
                 products, activation)


def _mlp(layer: Module, attention: str, path: str, name: str) -> tuple[str, Module]:
    """The child of a block that is its MLP; in OPT's blocks, with two projections instead, the second one."""
    others = [(key, child) for key, child in layer.named_children()
              if key != attention.split(".")[0] and not _is_norm(child)
              and (any(True for _ in child.parameters()) or projections(child, key))]
    if len(others) == 1 and not is_projection(others[0][1]):
        return others[0]
    if len(others) == 2 and all(is_projection(child) for _, child in others):
        return others[1]
    found = ", ".join(f"{key} ({type(child).__name__})" for key, child in others) or "nothing"
    raise GimkitError(f"{name}: {path} should hold one MLP beside its attention and norms, but holds {found}")


def _gating(path: str, mlp: Module, layer: Module, block: str,
            name: str) -> tuple[tuple[Product, ...], str | None]:
    """The gated products of an MLP and its activation module; an ungated MLP has two projections and no product."""
    products, experts = [], False
    for key, module in mlp.named_modules(prefix=path):
        children, parameters = module._modules, module._parameters
        if isinstance(module, torch.nn.ModuleList):
            raise GimkitError(f"{name}: {key} keeps its experts as separate modules, which run only when routed to; "
                              "use a transformers version or model with fused experts")
        if {"gate_up_proj", "down_proj"} <= parameters.keys():
            products.append(Product(key, "experts", ()))
            experts = True
        elif "down_proj" in children and children.keys() & {"gate_proj", "gate_up_proj"}:
            branches = (f"{key}.gate_proj", f"{key}.up_proj") if "gate_proj" in children else ()
            products.append(Product(f"{key}.down_proj", "down", branches))
    if not products and len(projections(mlp, path)) != (1 if is_projection(mlp) else 2):
        raise GimkitError(f"{name}: {path} ({type(mlp).__name__}) is neither a two-layer MLP nor a gated one with "
                          "gate_proj or gate_up_proj and down_proj, so the product rule cannot be placed")
    holder, prefix = (layer, block) if is_projection(mlp) else (mlp, path)
    activation = next((f"{prefix}.{key}" for key, child in holder.named_children() if _is_activation(child)), None)
    return tuple(products), None if experts else activation


def is_projection(module: Module | None) -> bool:
    """Whether this is a Linear or Conv1D, an adapter around one, or one with quantised weights."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return isinstance(module, LINEAR) or all(isinstance(size, int) for size in sizes)


def projections(module: Module, path: str) -> list[str]:
    """The paths of the projections in a module at a path, in order."""
    return [key for key, child in _outside_projections(module, path) if is_projection(child)]


def _outside_projections(module: Module, path: str) -> Iterator[tuple[str, Module]]:
    """(path, module) of a module and of those in it, but none of what an adapter or a quantised projection is made of.
    """
    yield path, module
    if not is_projection(module):
        for key, child in module.named_children():
            yield from _outside_projections(child, f"{path}.{key}" if path else key)


def _is_activation(module: Module) -> bool:
    return type(module).__module__ in ("torch.nn.modules.activation", "transformers.activations")


def _is_norm(module: Module) -> bool:
    return type(module).__name__.rstrip("1P").endswith("Norm") and not module._modules


def _norm(path: str, module: Module, name: str) -> Norm:
    unknown = [key for key, _ in module.named_parameters() if key not in ("weight", "bias")]
    if unknown:
        raise GimkitError(f"{name}: {path} ({type(module).__name__}) has the parameters {', '.join(unknown)}, "
                          "which no LayerNorm or RMSNorm has, so it could not be frozen")
    # A norm that keeps its eps to itself gets torch's default; recomputing its output checks the guess.
    eps = next((getattr(module, key) for key in ("variance_epsilon", "eps", "epsilon", "norm_eps")
                if getattr(module, key, None) is not None), 1e-5)
    return Norm(path, float(eps), "LayerNorm" in type(module).__name__)


def _norms(root: Module, body: str, name: str) -> tuple[Norm, ...]:
    """Every norm of the trunk. Another leaf module that scales each feature is refused: it could be a norm."""
    norms = []
    for path, module in _outside_projections(root.get_submodule(body), body):
        weight = module._parameters.get("weight")
        if any(_is_norm(child) for key, child in module.named_children() if key in ("original_module", "base_layer")):
            raise GimkitError(f"{name}: {path} ({type(module).__name__}) is an adapter's own copy of a norm, which "
                              "gimkit does not look into; merge the adapter: model.merge_and_unload()")
        if _is_norm(module):
            norms.append(_norm(path, module, name))
        elif weight is not None and weight.dim() == 1 and not module._modules:
            raise GimkitError(f"{name}: {path} ({type(module).__name__}) scales each feature but is no norm that "
                              "gimkit knows (its class name does not end in Norm), so it could not be frozen")
    return tuple(norms)


def _check_norms_everywhere(norms: tuple[Norm, ...], blocks: tuple[Block, ...], name: str) -> None:
    """Refuse a model whose norms are not all known: each block has one, and there is one after the last block."""
    paths = [norm.path for norm in norms]
    for block in blocks:
        if not any(path.startswith(block.path + ".") for path in paths):
            raise GimkitError(f"{name}: {block.path} has no norm that gimkit knows, so not all norms could be frozen")
    if all(path.startswith(blocks[0].path.rpartition(".")[0] + ".") for path in paths):
        raise GimkitError(f"{name} has no norm that gimkit knows after its last block, so not all could be frozen")


def _check_called_once(root: Module, norms: tuple[Norm, ...], blocks: tuple[Block, ...], name: str) -> None:
    """Refuse a module that every forward pass calls twice: an edit acts on a module's first call only."""
    paths = [norm.path for norm in norms] + [block.attention for block in blocks]
    for path in paths + [product.path for block in blocks for product in block.products]:
        parent, _, child = path.rpartition(".")
        source = _source(root.get_submodule(parent))
        if source.count(f"self.{child}(") > 1 and _sure_calls(ast.parse(source), child) > 1:
            raise GimkitError(f"{name}: {path} is called more than once in a forward pass, and a rule acts on the "
                              f"first call only; {NOT_COVERED}")


def _sure_calls(tree: ast.AST, child: str) -> int:
    """Calls of self.<child> outside of any branch."""
    if isinstance(tree, ast.If | ast.IfExp):
        return 0
    here = isinstance(tree, ast.Call) and ast.unparse(tree.func) == f"self.{child}"
    return here + sum(_sure_calls(node, child) for node in ast.iter_child_nodes(tree))
