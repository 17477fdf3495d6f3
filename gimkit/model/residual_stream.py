"""How a model's blocks read from and write to the residual stream: what edges need beyond the architecture."""

from typing import NamedTuple

from nnsight.intervention.envoy import Envoy
from torch.nn import Module

from gimkit.errors import GimkitError
from gimkit.model.architecture import Architecture, Block, Norm, Unembedding, architecture_of, unembedding_of
from gimkit.model.graph import Graph

# Which norms stand before and after attention and MLP, by the names that a block's own norms have.
ARRANGEMENTS = {
    ("ln_1", "ln_2"): ("ln_1", None, "ln_2", None),
    ("input_layernorm", "post_attention_layernorm"): ("input_layernorm", None, "post_attention_layernorm", None),
    ("input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm"): (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ("post_attention_layernorm", "post_feedforward_layernorm"): (
        None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
}
SEPARATE = ("q_proj", "k_proj", "v_proj")
FUSED = {"c_attn": "blocks", "qkv_proj": "blocks", "query_key_value": "interleaved"}


class Layer(NamedTuple):
    """Paths of one block's parts; a norm that the block does not have is None.

    Attributes:
        projections: the modules whose outputs are q, k and v.
        layout: "separate"; "blocks" (one projection with all q, all k, all v side by side) or "interleaved" (one
            projection with q, k, v head by head).
    """

    block: str
    norm_before_attention: Norm | None
    attention: str
    projections: tuple[str, str, str]
    layout: str
    output: str
    norm_after_attention: Norm | None
    norm_before_mlp: Norm | None
    mlp: str
    norm_after_mlp: Norm | None


class ResidualStream(NamedTuple):
    """A model as sources and targets on a residual stream, in plain names and numbers.

    Attributes:
        key_heads: heads of keys and values, fewer than `heads` where query heads share them.
        width: of the residual stream.
        parallel: attention and MLP read the same residual stream (GPT-NeoX); else the MLP reads the attention's output
            too.
    """

    name: str
    embedding: str
    layers: tuple[Layer, ...]
    final_norm: Norm
    heads: int
    key_heads: int
    head_dim: int
    width: int
    parallel: bool
    unembedding: Unembedding


def residual_stream_of(model: Envoy, architecture: Architecture | None = None) -> ResidualStream:
    """Find how a model's blocks read from and write to the residual stream.

    >>> stream = residual_stream_of(gimkit.load("mini-llama"))
    >>> stream.heads, stream.key_heads, stream.layers[0].projections[0]
    (4, 2, 'model.layers.0.self_attn.q_proj')

    Args:
        model: an nnsight model.
        architecture: of this model, when it is known already.

    Raises:
        GimkitError: blocks that are not arranged like those of GPT-2, Llama, GPT-NeoX, Gemma-2 or OLMo-2.
    """
    architecture = architecture or architecture_of(model)
    config = model._module.config.get_text_config()
    name = architecture.name
    norms = {norm.path: norm for norm in architecture.norms}
    if getattr(config, "residual_multiplier", 1) != 1:
        raise GimkitError(f"{name} scales what its blocks write (residual_multiplier), so its edges are not covered; "
                          "score nodes instead")
    layers = tuple(_layer(model._module, block, norms, name) for block in architecture.blocks)
    trunk = architecture.blocks[0].path.rpartition(".")[0]
    final = [norm for norm in architecture.norms if not norm.path.startswith(trunk + ".")]
    if len(final) != 1:
        raise GimkitError(f"{name} has {len(final)} norms outside its blocks, not one final norm, so its edges are not "
                          "covered; score nodes instead")
    heads = architecture.n_heads
    shared = layers[0].layout != "interleaved" and getattr(config, "num_key_value_heads", None)
    return ResidualStream(
        name, architecture.embedding, layers, final[0], heads, shared or heads, architecture.head_dim,
        width=model._module.get_input_embeddings().weight.shape[1],
        parallel=bool(getattr(config, "use_parallel_residual", False)), unembedding=unembedding_of(model))


def graph_of(stream: ResidualStream) -> Graph:
    """The names and edges of a model."""
    return Graph(len(stream.layers), stream.heads, stream.parallel, stream.width)


def graph_if_covered(model: Envoy, architecture: Architecture) -> Graph | None:
    """The names and edges of a model; None where its edges are not covered."""
    try:
        return graph_of(residual_stream_of(model, architecture))
    except GimkitError:
        return None


def check_graph(graph: Graph | None, stream: ResidualStream, what: str = "the circuit or scores are") -> None:
    """Refuse scores or a circuit of another model. what: the start of the message, with its verb."""
    if graph != graph_of(stream):
        raise GimkitError(f"{what} of a model of {graph}, but {stream.name} here has {graph_of(stream)}; "
                          "score this model's edges")


def norms_after(architecture: Architecture) -> list[tuple[Norm | None, Norm | None]]:
    """Each block's norms after attention and after the MLP; None where it has none, or its arrangement is unknown."""
    norms = {norm.path: norm for norm in architecture.norms}
    found = []
    for block in architecture.blocks:
        _, attention, _, mlp = ARRANGEMENTS.get(_own_norms(block, norms), (None,) * 4)
        found.append((_norm_at(block, attention, norms), _norm_at(block, mlp, norms)))
    return found


def _norm_at(block: Block, key: str | None, norms: dict[str, Norm]) -> Norm | None:
    return norms[f"{block.path}.{key}"] if key else None


def _own_norms(block: Block, norms: dict[str, Norm]) -> tuple[str, ...]:
    return tuple(sorted(path.rpartition(".")[2] for path in norms if path.rpartition(".")[0] == block.path))


def _layer(root: Module, block: Block, norms: dict[str, Norm], name: str) -> Layer:
    own = _own_norms(block, norms)
    if own not in ARRANGEMENTS:
        raise GimkitError(f"{name}: {block.path} has the norms {', '.join(own)}, an arrangement whose edges are not "
                          "covered; score nodes instead")
    before, after, before_mlp, after_mlp = (_norm_at(block, key, norms) for key in ARRANGEMENTS[own])
    attention = root.get_submodule(block.attention)
    fused = next((key for key in FUSED if hasattr(attention, key)), None)
    if fused:
        projections, layout = (f"{block.attention}.{fused}",) * 3, FUSED[fused]
    elif all(hasattr(attention, key) for key in SEPARATE):
        q, k, v = (f"{block.attention}.{key}" for key in SEPARATE)
        projections, layout = (q, k, v), "separate"
    else:
        raise GimkitError(f"{name}: {block.attention} has no q, k and v projections that gimkit knows, so its edges "
                          "are not covered; score nodes instead")
    return Layer(block.path, before, block.attention, projections, layout, block.output, after, before_mlp, block.mlp,
                 after_mlp)
