"""Small tokenizers of the two kinds: bytes with merges (as GPT-2 and Llama-3), and pieces with ▁ (as Llama-2)."""

from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TEMPLATE = ("{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}")


def bytes_and_merges(start="<s> ", end=""):
    """Texts get `start` before and `end` behind them; messages go through TEMPLATE."""
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(["The cat said Yes to New York is it Yes: Yes\nYes No\nNo: No\n"] * 50, vocab_size=340,
                              special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"], show_progress=False)
    inner._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}$A{end}", special_tokens=[("<s>", 0), ("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, bos_token="<s>", eos_token="</s>",
                                   pad_token="</s>", additional_special_tokens=["<|user|>", "<|assistant|>"])
    made.chat_template = TEMPLATE
    return made


def pieces():
    """Words begin with ▁, bytes stand for what has no piece, <s> comes first."""
    known = ["<unk>", "<s>", "</s>", "▁", "▁Yes", "Yes", "▁No", "No", "▁York", "▁New", "▁is", "▁it", "it", ":"]
    inner = Tokenizer(models.Unigram([(piece, -2.0) for piece in known] + [(f"<0x{i:02X}>", -22.0) for i in range(256)],
                                     unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
