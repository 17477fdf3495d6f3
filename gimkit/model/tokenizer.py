"""From texts to token ids and back, with errors that name the cause."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from gimkit.errors import GimkitError, check_ids, check_whole

PromptLike = str | Sequence[Mapping] | Sequence[int] | torch.Tensor | Mapping  # text, messages, ids, BatchEncoding
MARKER = re.compile(r"(<[^<>\s]+>|\[/?[A-Z_]+\])$")  # <|assistant|>, [/INST]


def is_text(prompt: object) -> bool:
    """Is this a text or a list of chat messages? Token ids are not.

    >>> is_text("Mary went home"), is_text([{"role": "user", "content": "Who went home?"}]), is_text([1, 5])
    (True, True, False)
    """
    messages = isinstance(prompt, list | tuple) and len(prompt) > 0 and all(
        isinstance(one, Mapping) and "role" in one for one in prompt)
    return isinstance(prompt, str) or messages


def text_of(tokenizer: Any, prompt: PromptLike) -> str:
    """A prompt as text: messages through the tokenizer's chat template, token ids decoded.

    >>> text_of(model.tokenizer, [195, 178])
    'Mary John'

    Raises:
        GimkitError: messages, but the tokenizer has no chat template, or its template refuses them.
    """
    if isinstance(prompt, str):
        return prompt
    if not is_text(prompt):
        return tokenizer.decode(torch.as_tensor(prompt).tolist())
    if getattr(tokenizer, "chat_template", None) is None:
        raise GimkitError("this tokenizer has no chat template for messages; give the prompt as a text")
    try:
        return tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program and can raise anything
        raise GimkitError(f"the tokenizer's chat template does not take these messages ({error}); give a list of "
                          "{'role': ..., 'content': ...}, or the prompt as a text") from error


def text_ids(tokenizer: Any, prompt: PromptLike) -> list[int]:
    """The token ids of a text or of messages: one start token where the tokenizer has one, and no end token.

    >>> len(text_ids(model.tokenizer, "Mary went home")), len(text_ids(model.tokenizer, "<s> Mary went home"))
    (4, 4)

    Messages start as their chat template starts.

    Raises:
        GimkitError: an empty text.
    """
    if not text_of(tokenizer, prompt).strip():
        raise GimkitError("the prompt is empty; give at least one word")
    return _ids(tokenizer, prompt)


def _ids(tokenizer: Any, prompt: PromptLike, continuation: str = "") -> list[int]:
    """As `text_ids`, of the prompt followed by a text."""
    text = text_of(tokenizer, prompt) + continuation
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start, _ = ([], []) if not isinstance(prompt, str) else _special_ids(tokenizer, text, bare)
    return bare if start == bare[:len(start)] else start + bare


def _special_ids(tokenizer: Any, text: str, bare: list[int]) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before a text's own ids, and after them."""
    whole = list(tokenizer(text)["input_ids"])
    first = next((i for i in range(len(whole) - len(bare) + 1) if whole[i:i + len(bare)] == bare), 0)
    return whole[:first], whole[first + len(bare):]


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """The words of a text for which the tokenizer writes its unknown token.

    >>> unknown_words(model.tokenizer, "Mary likes the Eiffel Tower.")
    ['likes', 'Eiffel', 'Tower']
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown not in tokenizer(text, add_special_tokens=False)["input_ids"]:
        return []
    words = [word.strip(".,;:!?\"'()") or word for word in text.replace(tokenizer.unk_token, " ").split()]
    return [word for word in dict.fromkeys(words) if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]


def warn_unknown(tokenizer: Any, words: Iterable[str]) -> None:
    """Warn of words that the model cannot read, if there are any."""
    words = list(dict.fromkeys(words))
    if words:
        more = f" and {len(words) - 8} more" if len(words) > 8 else ""
        warnings.warn(f"the tokenizer does not know {', '.join(map(repr, words[:8]))}{more}: the model reads "
                      f"{tokenizer.unk_token} instead; use other words, or a model with a larger vocabulary",
                      stacklevel=5)


def answer_ids(tokenizer: Any, prompt: PromptLike, answer: str, glue: str | None = None) -> list[int]:
    """The token ids of an answer that follows its prompt.

    >>> answer_ids(model.tokenizer, "Mary drove to the farm with John. John lent a map to", "Mary")
    [195]

    Args:
        prompt: a text, chat messages or token ids.
        answer: a text.
        glue: as in `gimkit.attribute`.

    Raises:
        GimkitError: an empty answer, one with unknown words, or one that shares a token with the end of its prompt.
    """
    if not answer:
        raise GimkitError("an answer is empty; give at least one character")
    if glue is not None and not isinstance(glue, str):
        raise GimkitError(f"glue is the text between prompt and answer, such as '' or ' ', not {glue!r}")
    text, chat = text_of(tokenizer, prompt), is_text(prompt) and not isinstance(prompt, str)
    prompt = prompt if chat else text
    before, joined = _ids(tokenizer, prompt), " " if glue is None else glue
    if glue is None and (answer[0].isspace() or chat or _takes_no_space(tokenizer, text)):
        joined = ""
    elif glue is None and text.endswith(" "):
        if before == _ids(tokenizer, text.rstrip(" ")):
            prompt = text.rstrip(" ")
        else:  # the space is a token
            joined = ""
    after = _ids(tokenizer, prompt, joined + answer)
    if after[:len(before)] == before:
        added = after[len(before):]
    elif joined != " ":
        added = _ids_at_line_start(tokenizer, joined + answer)
    else:
        raise GimkitError(f"{answer!r} runs together with the end of its prompt; use another prompt, glue='', or give "
                          "token ids")
    if not added:
        raise GimkitError(f"{answer!r} is no token of its own in this tokenizer; choose a word that it knows")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in added and tokenizer.unk_token not in answer:
        raise GimkitError(f"{answer!r} is not in the tokenizer's vocabulary; choose a word that it knows")
    return added


def _takes_no_space(tokenizer: Any, text: str) -> bool:
    """Does a text end in a line break, a special token or a chat marker, so that no space follows?"""
    specials = [token for token in getattr(tokenizer, "all_special_tokens", ()) if token != tokenizer.unk_token]
    return (text[-1].isspace() and text[-1] != " ") or text.endswith(tuple(specials)) or bool(MARKER.search(text))


def _ids_at_line_start(tokenizer: Any, answer: str) -> list[int]:
    """An answer's tokens when the first one does not join the text before it: as at the start of a line."""
    line, after = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("\n", "\n" + answer))
    if after[:len(line)] == line and len(after) > len(line):
        return after[len(line):]
    return list(tokenizer(answer, add_special_tokens=False)["input_ids"])


def answer_id(tokenizer: Any, prompt: PromptLike, answer: str, glue: str | None = None) -> int:
    """As `answer_ids`, for an answer of one token.

    >>> answer_id(model.tokenizer, "Mary drove to the farm with John. John lent a map to", "Mary")
    195

    Raises:
        GimkitError: an answer of several tokens, which the message lists.
    """
    return _single(tokenizer, answer, answer_ids(tokenizer, prompt, answer, glue))


def _single(tokenizer: Any, word: str, ids: list[int]) -> int:
    """The only one of a word's ids; an error for a word of several tokens or an unknown one."""
    if len(ids) > 1:
        pieces = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
        raise GimkitError(f"{word!r} is not one token but {len(ids)}: {pieces}; choose a word that is a single token, "
                          "or give a token id")
    if ids[0] == tokenizer.unk_token_id and word != tokenizer.unk_token:
        raise GimkitError(f"{word!r} is not in the tokenizer's vocabulary; choose a word that it knows")
    return ids[0]


def encode(tokenizer: Any, prompt: PromptLike) -> torch.Tensor:
    """Token ids [seq] of a prompt: one start token first and no end token last, where the tokenizer writes them.

    >>> encode(model.tokenizer, "Mary went home").shape
    torch.Size([4])

    Warns of words that the tokenizer does not know, and of tokens that it removes from given ids.

    Args:
        tokenizer: None where the model has none; then only ids are accepted.
        prompt: a text, chat messages, a tokenizer's BatchEncoding, or token ids [seq] in a list, array or tensor.

    Raises:
        GimkitError: an empty prompt, a text without a tokenizer, ids that are not whole numbers.
    """
    if is_text(prompt):
        if tokenizer is None:
            raise GimkitError("the model has no tokenizer, so give token ids instead of a text")
        ids = text_ids(tokenizer, prompt)
        warn_unknown(tokenizer, unknown_words(tokenizer, text_of(tokenizer, prompt)))
        return torch.tensor(ids)
    mask = None
    if isinstance(prompt, Mapping) and "input_ids" in prompt:  # a tokenizer's BatchEncoding
        prompt, mask = prompt["input_ids"], prompt.get("attention_mask")
    ids = check_ids(prompt)
    if ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    if mask is not None and ids.dim() == 1:
        ids = ids[torch.as_tensor(mask).bool().flatten()]
    if ids.numel() == 0:
        raise GimkitError("the prompt is empty; give at least one token")
    if ids.dim() != 1:
        raise GimkitError(f"a prompt is one text or a row of token ids, not a tensor of shape {tuple(ids.shape)}")
    return ids if tokenizer is None else _trimmed(tokenizer, ids)


def _trimmed(tokenizer: Any, ids: torch.Tensor) -> torch.Tensor:
    """Given ids without a second start token and without the end token that the tokenizer appends to every text."""
    first, last, start = 0, len(ids), getattr(tokenizer, "bos_token_id", None)
    while first + 1 < last and ids[first] == ids[first + 1] == start:
        first += 1
    end = _special_ids(tokenizer, "a", list(tokenizer("a", add_special_tokens=False)["input_ids"]))[1]
    if end and ids[first:].tolist()[-len(end):] == end and last - first > len(end):
        last -= len(end)
    if last - first < len(ids):
        removed = [token_text(tokenizer, token) for token in (*ids[:first].tolist(), *ids[last:].tolist())]
        warnings.warn(f"removed from the given token ids: {', '.join(removed)}; a prompt has one start token and no "
                      "end token", stacklevel=4)
    return ids[first:last]


def one_token(tokenizer: Any, word: str | int) -> int:
    """The id of a word that is a single token; the word with a leading space is tried first.

    >>> one_token(model.tokenizer, "Mary")
    195

    Args:
        word: a text, or an id, which is returned as it is.

    Raises:
        GimkitError: a word of several tokens, which the message lists.
    """
    if not isinstance(word, str):
        return check_whole("a token that is not a text is an id, which", word, 0)
    if tokenizer is None:
        raise GimkitError("the model has no tokenizer, so give token ids instead of texts")
    spellings = [word] if word.startswith(" ") else [" " + word, word]
    found = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
    unknown = [] if word == tokenizer.unk_token else [tokenizer.unk_token_id]
    whole = [ids for ids in found if len(ids) == 1 and ids != unknown]
    return _single(tokenizer, word, (whole or found)[0])


def token_text(tokenizer: Any, *tokens: int) -> str:
    """The readable text of one token, or of several side by side; without a tokenizer, the ids.

    >>> token_text(model.tokenizer, 195)
    'Mary'
    """
    ids = " ".join(map(str, tokens))
    return ids if tokenizer is None else tokenizer.decode(list(tokens)) or ids


def baseline_token(tokenizer: Any) -> int:
    """The id of the token that stands for no information: mask, space or padding, the first that exists.

    >>> token_text(model.tokenizer, baseline_token(model.tokenizer))
    '<blank>'

    Raises:
        GimkitError: there is no tokenizer, or it has none of the three.
    """
    if tokenizer is None:
        raise GimkitError("the model has no tokenizer, so give baseline= as a token id")
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    space = tokenizer(" ", add_special_tokens=False)["input_ids"]
    if len(space) == 1:
        return space[0]
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    raise GimkitError("the tokenizer has no mask, space or padding token; give baseline= as a token's text or id")
