"""GGUF written out by hand: a reader that shares no code with gguf or transformers, and a tiny file to read."""

import struct

import gguf
import numpy

SCALARS = "B b H h I i f ? s a Q q d".split()  # by the format's type number; 8 is a string, 9 an array
F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8
BLOCK = 32  # numbers that share a scale


def read(path):
    """(metadata, {name: float32 array}) of a GGUF file, version 3."""
    data, at = path.read_bytes(), 0

    def take(kind):
        nonlocal at
        value, = struct.unpack_from("<" + kind, data, at)
        at += struct.calcsize("<" + kind)
        return value

    def text():
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size:at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = take("I"), take("Q")
            return [value(inner) for _ in range(count)]
        return take(SCALARS[kind])

    assert data[:4] == b"GGUF"
    at = 4
    assert take("I") == 3
    tensors, pairs = take("Q"), take("Q")
    metadata = {text(): value(take("I")) for _ in range(pairs)}
    heads = [(text(), [take("Q") for _ in range(take("I"))], take("I"), take("Q")) for _ in range(tensors)]
    start = at + -at % metadata.get("general.alignment", 32)
    return metadata, {name: numbers(data, start + offset, kind, shape[::-1]) for name, shape, kind, offset in heads}


def numbers(data, at, kind, shape):
    """The float32 numbers of a tensor, by the format's formulas."""
    size = int(numpy.prod(shape))
    if kind in (F32, F16):
        return numpy.frombuffer(data, ("<f4", "<f2")[kind], size, at).astype(numpy.float32).reshape(shape)
    if kind == Q8_0:  # a scale, then 32 signed bytes
        blocks = numpy.frombuffer(data, numpy.dtype([("d", "<f2"), ("q", "i1", BLOCK)]), size // BLOCK, at)
        return (blocks["d"].astype(numpy.float32)[:, None] * blocks["q"].astype(numpy.float32)).reshape(shape)
    assert kind == Q4_1, kind  # a scale, the least number, then 32 half bytes: the low halves first
    block = numpy.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", BLOCK // 2)])
    blocks = numpy.frombuffer(data, block, size // BLOCK, at)
    q = numpy.concatenate([blocks["q"] & 15, blocks["q"] >> 4], 1).astype(numpy.float32)
    return (blocks["d"].astype(numpy.float32)[:, None] * q + blocks["m"].astype(numpy.float32)[:, None]).reshape(shape)


def paired(matrix, heads):
    """Rows of a query or key matrix as GGUF orders them: rotated pairs side by side, not half a head apart."""
    return matrix.reshape(heads, 2, -1, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def halved(matrix, heads):
    """The inverse of `paired`."""
    return matrix.reshape(heads, -1, 2, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


OF_BLOCK = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def names_of(layers):
    """{GGUF's name: transformers' name} of a Llama-type model's weights, tied embeddings."""
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    return whole | {f"blk.{i}.{short}.weight": f"model.layers.{i}.{long}.weight"
                    for i in range(layers) for short, long in OF_BLOCK.items()}


def write_tiny(path, model, tokens, leave_out=()):
    """A tiny Llama-type transformers model with tied embeddings as a GGUF file, its weights in float32."""
    c, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["m a"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    weights = model.state_dict()
    for short, long in names_of(c.num_hidden_layers).items():
        value = weights[long].numpy()
        if "attn_q" in short or "attn_k" in short:
            value = paired(value, c.num_attention_heads if "attn_q" in short else c.num_key_value_heads)
        if short not in leave_out:
            writer.add_tensor(short, numpy.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
