"""What forward mode needs to know of a model, in names and numbers; read on the client, from config and source."""

import inspect
from typing import Any

from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError
from gimkit.interventions.recomputed import tolerance_of, weight_dtypes
from gimkit.model.apply import check_unedited, placements
from gimkit.model.architecture import Architecture, Block, Norm, architecture_of
from gimkit.model.residual_stream import residual_stream_of
from gimkit.rules import Rules

ACTIVATIONS = ("NewGELUActivation", "GELUTanh", "GELUActivation", "GELU", "SiLUActivation", "SiLU", "ReLU")
REVERSE = "use backend='reverse' where gradients are allowed"


def plan_of(model: Envoy, rules: Rules) -> dict:
    """Every place that forward mode reads or writes, in the order of the forward pass.

    >>> plan_of(gimkit.load("mini-llama"), gimkit.RULES["gim"])["blocks"][0]["rotary"]
    'apply_rotary_pos_emb_0'

    Returns:
        A dict with one entry per block, as `gimkit.interventions.jvp` reads it.

    Raises:
        GimkitError: a model with rules, or an architecture with parts that forward mode cannot linearise.
    """
    parts = architecture_of(model)
    check_unedited(model)
    placements(parts, rules)  # refuses rules that could not act
    try:
        stream = residual_stream_of(model, parts)
    except GimkitError as error:
        raise GimkitError(f"forward mode does not cover these blocks ({error}); {REVERSE}") from error
    root, config = model._module, model._module.config.get_text_config()

    def norm(found: Norm | None) -> tuple | None:
        return found and tuple(found)

    blocks = []
    for layer, (block, own) in enumerate(zip(parts.blocks, stream.layers)):
        attention = root.get_submodule(block.attention)
        inner = [found for found in parts.norms if found.path.startswith(block.attention + ".")]
        blocks.append({
            "before_attention": norm(own.norm_before_attention), "after_attention": norm(own.norm_after_attention),
            "before_mlp": norm(own.norm_before_mlp), "after_mlp": norm(own.norm_after_mlp),
            "attention": block.attention, "projections": tuple(own.projections), "layout": own.layout,
            "head_norms": [norm(found) for found in inner], "output": block.output, "mlp": block.mlp,
            "heads": stream.heads, "key_heads": stream.key_heads, "head_dim": stream.head_dim,
            **_kernel(attention, config, layer), **_mlp(root, block, parts),
        })
    return {"embedding": stream.embedding, "blocks": blocks, "norms": [norm(found) for found in parts.norms],
            "final_norm": norm(stream.final_norm), "unembedding": stream.unembedding.path,
            "all_positions": stream.unembedding.all_positions,
            "softcap": getattr(config, "final_logit_softcapping", None), "width": stream.width,
            "vocabulary": root.get_output_embeddings().weight.shape[0],
            "tolerance": tolerance_of(*weight_dtypes(root))}


def _kernel(attention: Any, config: Any, layer: int) -> dict:
    """What the kernel gets beside q, k and v. A mistake here raises an error when outputs are recomputed."""
    kinds = getattr(config, "layer_types", None)
    local = kinds is None or "sliding" in kinds[layer]
    source = inspect.getsource(inspect.unwrap(type(attention).forward))
    places = [source.find(f"self.{name}(") for name in ("v_proj", "k_norm")]
    return {
        "scaling": float(getattr(attention, "scaling", None) or attention.head_dim ** -0.5),
        "softcap": getattr(attention, "attn_logit_softcapping", None),
        "window": getattr(config, "sliding_window", None) if local else None,
        "rotary": "apply_rotary_pos_emb_0" if "apply_rotary_pos_emb(" in source else None,
        "values_first": places[0] < places[1],
    }


def _mlp(root: Any, block: Block, parts: Architecture) -> dict:
    """Where to read the MLP's activation, or the two branches of its product, and where their result goes."""
    if parts.experts or block.activation is None:
        raise GimkitError(f"{parts.name}: {block.mlp} has experts, or no activation module of its own, so "
                          f"forward mode cannot linearise it; {REVERSE}")
    function = type(root.get_submodule(block.activation)).__name__
    if function not in ACTIVATIONS:
        raise GimkitError(f"{parts.name}: forward mode does not know the derivative of {function}; {REVERSE}")
    gate = up = down = None
    if block.products:
        (product,) = block.products
        down = product.path
        gate, up = product.branches or (product.path.rpartition(".")[0] + ".gate_up_proj", None)
    return {"activation": block.activation, "function": function, "gate": gate, "up": up, "down": down}
