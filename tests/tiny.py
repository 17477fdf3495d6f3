"""Tiny random models of many architectures, built from their transformers configs, always the same weights.

The weights are large on purpose (peaked attention, norm weights away from 1, biases and sinks away from 0),
so that every backward rule changes the gradient visibly.
"""

import torch
import transformers

VOCAB = 61
LAYERS = 3

_GPT = dict(n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64)
_COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
_MLA = dict(
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    num_key_value_heads=4,
)
_DEEPSEEK = dict(
    _MLA,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
    n_group=2,
    topk_group=1,
    n_shared_experts=1,
)

# name -> (config class, what it needs beyond the common settings)
GIM = {
    "gpt2": ("GPT2Config", _GPT),
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", dict(sliding_window=4)),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", dict(head_dim=8)),
    "gemma2": (
        "Gemma2Config",
        dict(
            head_dim=8,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=4.0,
            sliding_window=4,
        ),
    ),
    "gemma3": (
        "Gemma3TextConfig",
        dict(
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "gpt_neox": ("GPTNeoXConfig", dict(use_parallel_residual=True, rotary_pct=0.5)),
    "gpt_neox_serial": ("GPTNeoXConfig", dict(use_parallel_residual=False, rotary_pct=0.5)),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "mixtral": ("MixtralConfig", dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen3_moe": ("Qwen3MoeConfig", dict(_EXPERTS, head_dim=8, norm_topk_prob=True, mlp_only_layers=[1])),
    "gpt_oss": (
        "GptOssConfig",
        dict(
            num_local_experts=4,
            num_experts_per_tok=2,
            head_dim=8,
            sliding_window=4,
            swiglu_limit=2.0,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
}

# Not promised, but close enough to the above that the generic mechanism may work.
TRIED = {
    "olmo": ("OlmoConfig", {}),
    "olmo3": (
        "Olmo3Config",
        dict(sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    ),
    "olmoe": ("OlmoeConfig", dict(num_experts=4, num_experts_per_tok=2)),
    "stablelm": ("StableLmConfig", {}),
    "stablelm_parallel": ("StableLmConfig", dict(use_parallel_residual=True, qk_layernorm=True)),
    "starcoder2": ("Starcoder2Config", dict(sliding_window=4)),
    "cohere": ("CohereConfig", dict(use_qk_norm=True, logit_scale=1.0)),
    "cohere2": (
        "Cohere2Config",
        dict(
            logit_scale=1.0,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "granite": (
        "GraniteConfig",
        dict(attention_multiplier=0.5, residual_multiplier=0.7, embedding_multiplier=2.0, logits_scaling=2.0),
    ),
    "granitemoe": ("GraniteMoeConfig", dict(num_local_experts=4, num_experts_per_tok=2)),
    "glm": ("GlmConfig", dict(head_dim=8)),
    "glm4": ("Glm4Config", dict(head_dim=8)),
    "glm4_moe": (
        "Glm4MoeConfig",
        dict(
            head_dim=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            first_k_dense_replace=1,
            n_group=2,
            topk_group=1,
        ),
    ),
    "smollm3": ("SmolLM3Config", {}),
    "phi": ("PhiConfig", dict(partial_rotary_factor=0.5)),
    "phimoe": ("PhimoeConfig", dict(num_local_experts=4, num_experts_per_tok=2)),
    "gemma": ("GemmaConfig", dict(head_dim=8)),
    "ministral": ("MinistralConfig", dict(sliding_window=4, head_dim=8)),
    "ministral3": ("Ministral3Config", dict(head_dim=8)),
    "exaone4": (
        "Exaone4Config",
        dict(
            sliding_window=4,
            head_dim=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "ernie4_5": ("Ernie4_5Config", dict(head_dim=8)),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        dict(
            moe_num_experts=4,
            moe_k=2,
            moe_intermediate_size=24,
            moe_layer_start_index=1,
            moe_num_shared_experts=1,
        ),
    ),
    "hunyuan": ("HunYuanDenseV1Config", dict(head_dim=8)),
    "seed_oss": ("SeedOssConfig", dict(head_dim=8)),
    "helium": ("HeliumConfig", dict(head_dim=8)),
    "arcee": ("ArceeConfig", dict(head_dim=8)),
    "apertus": ("ApertusConfig", {}),
    "nemotron": ("NemotronConfig", dict(head_dim=8)),
    "persimmon": ("PersimmonConfig", {}),
    "qwen2_moe": ("Qwen2MoeConfig", dict(_EXPERTS, shared_expert_intermediate_size=24)),
    "dots1": (
        "Dots1Config",
        dict(
            head_dim=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            first_k_dense_replace=1,
            n_group=2,
            topk_group=1,
            n_shared_experts=1,
        ),
    ),
    "deepseek_v2": ("DeepseekV2Config", dict(_DEEPSEEK, topk_method="greedy")),
    "deepseek_v3": ("DeepseekV3Config", _DEEPSEEK),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT),
    "biogpt": ("BioGptConfig", {}),
    "opt": ("OPTConfig", dict(ffn_dim=48, word_embed_proj_dim=32)),
    "nanochat": ("NanoChatConfig", {}),
    "vaultgemma": (
        "VaultGemmaConfig",
        dict(
            head_dim=8,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=4.0,
            sliding_window=4,
        ),
    ),
    "jais2": ("Jais2Config", dict(head_dim=8)),
    # calls its attention twice per layer
    "diffllama": ("DiffLlamaConfig", {}),
}

# No attention_interface, or no causal language model: the kit must say so.
REFUSED = {
    "gpt_neo": (
        "GPTNeoConfig",
        dict(
            num_layers=LAYERS,
            num_heads=4,
            attention_types=[[["global", "local", "global"], 1]],
            window_size=4,
        ),
    ),
    "bloom": ("BloomConfig", dict(n_layer=LAYERS, n_head=4)),
    "falcon": ("FalconConfig", {}),
    "mpt": ("MptConfig", dict(d_model=32, n_heads=4, n_layers=LAYERS, max_seq_len=64)),
    "mamba": ("MambaConfig", dict(state_size=8)),
    "t5": (
        "T5Config",
        dict(d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0),
    ),
}

# They call attention_interface from transformers 5.24 on.
_NEWER = {"gptj": ("GPTJConfig", dict(_GPT, rotary_dim=4)), "codegen": ("CodeGenConfig", dict(_GPT, rotary_dim=4))}
_COVERED = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24)
(TRIED if _COVERED else REFUSED).update(_NEWER)

GIM_NAMES, TRIED_NAMES, REFUSED_NAMES = tuple(GIM), tuple(TRIED), tuple(REFUSED)
TABLE = {**GIM, **TRIED, **REFUSED}

# Where the common names of settings would override an architecture's own ones.
_OWN_NAMES = {"gpt2", "gptj", "codegen", "gpt_bigcode", "bloom", "mpt", "gpt_neo", "t5"}
_NOT_HEADS = {"mamba"}
_EAGER_ONLY = {"gemma2", "vaultgemma", "gpt_oss", "gpt_neo", "bloom", "mpt", "mamba", *(() if _COVERED else _NEWER)}


def config(name, **changes):
    """The tiny config of an architecture: `config("llama").hidden_size == 32`. changes: of its settings."""
    cls, own = TABLE[name]
    common = dict(_COMMON)
    if name in _OWN_NAMES:
        common = {k: common[k] for k in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
        if name in ("gpt_neo", "bloom"):
            common["hidden_size"] = 32
    if name in _NOT_HEADS:
        common = {k: v for k, v in common.items() if "heads" not in k}
    return getattr(transformers, cls)(**{**common, **own, **changes})


def implementations(name):
    """The attention implementations that transformers offers for it, preferred one first."""
    return ("eager",) if name in _EAGER_ONLY else ("sdpa", "eager")


def build(name, dtype=torch.float32, attn=None, seed=0, gain=None, **changes):
    """A tiny random model in eval mode with frozen parameters; its weights depend on name and seed only.

    build("llama")(torch.arange(10)[None]).logits.shape == (1, 10, 61)

    attn: one of implementations(name), the first by default. In float64 the experts of mixtures run one by
    one, because their fused kernel has no float64. gain: scale of the matrices, in units that keep the size of
    a normalised input; smaller is less sensitive to rounding (bfloat16), larger more peaked. changes: of its config.
    """
    attn = attn or implementations(name)[0]
    auto = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
    experts = dict(experts_implementation="eager") if dtype is torch.float64 else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config(name, **changes), attn_implementation=attn, **experts)
        # the unbounded experts of gpt-oss amplify rounding errors
        _randomise(model, gain or (1.0 if name == "gpt_oss" else 1.5))
    return model.to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def _randomise(model, gain):
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for parameter in model.parameters():
        noise = torch.randn_like(parameter, dtype=torch.float32)
        if id(parameter) in embeddings:
            parameter.copy_(0.5 * noise)
        elif parameter.ndim >= 2:
            # fan-in is the last axis of a Linear and the first of a Conv1D: the smaller of both serves either
            parameter.copy_(gain * noise / min(parameter.shape[-2:]) ** 0.5)
        else:  # norm weights start at their neutral value (1, or 0 for 1 + w); biases and sinks start at 0
            parameter.copy_(torch.nan_to_num(parameter.float(), 0, 0, 0).clamp(-1, 1) + 0.3 * noise)


def token_ids(batch=2, length=10, seed=0):
    """Random ids that avoid the special tokens, [batch, length]."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
