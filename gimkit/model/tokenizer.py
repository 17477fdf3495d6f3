"""Between texts and token ids, with errors that say what went wrong."""

import torch

from gimkit.errors import GimkitError


def text_ids(tokenizer, text: str) -> list[int]:
    """A text's token ids, with the tokenizer's own start token.

    >>> len(text_ids(model.tokenizer, "Mary went home"))
    4

    Raises GimkitError for an empty text.
    """
    if not text.strip():
        raise GimkitError("the prompt is empty; give at least one word")
    return list(tokenizer(text)["input_ids"])


def answer_id(tokenizer, prompt: str, answer: str, glue: str = " ") -> int:
    """The one token that an answer is behind its prompt.

    >>> answer_id(model.tokenizer, "Mary drove to the farm with John. John lent a map to", "Mary")
    195

    glue: what stands between prompt and answer, instead of the prompt's own last spaces; "": just what the prompt ends
    in. Raises GimkitError when the answer splits, saying into which tokens.
    """
    before = text_ids(tokenizer, prompt)
    after = text_ids(tokenizer, (prompt.rstrip() if glue else prompt) + glue + answer.strip())
    added = after[len(before):]
    if after[:len(before)] != before or not added:
        raise GimkitError(f"{answer!r} runs together with the end of its prompt; use another prompt")
    return _single(tokenizer, answer, added)


def _single(tokenizer, word: str, ids: list[int]) -> int:
    """The only one of a word's ids, or the error that says why it has several, or is unknown."""
    if len(ids) > 1:
        pieces = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
        raise GimkitError(f"{word!r} is not one token but {len(ids)}: {pieces}; choose a word that is a single token, "
                          "or give a token id")
    if ids[0] == tokenizer.unk_token_id and word != tokenizer.unk_token:
        raise GimkitError(f"{word!r} is not in the tokenizer's vocabulary; choose a word that it knows")
    return ids[0]


def encode(tokenizer, prompt) -> torch.Tensor:
    """Token ids [seq] of a text (with the tokenizer's own start token), or of ids given as a list or tensor.

    >>> encode(model.tokenizer, "Mary went home").shape
    torch.Size([4])

    Raises GimkitError for an empty prompt, and for a text without a tokenizer.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise GimkitError("the model has no tokenizer, so give token ids instead of a text")
        prompt = text_ids(tokenizer, prompt)
    ids = torch.as_tensor(prompt)
    if ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.numel() == 0:
        raise GimkitError("the prompt is empty; give at least one token")
    if ids.dim() != 1 or ids.is_floating_point():
        raise GimkitError(f"a prompt is one text or a row of token ids, not a {ids.dtype} tensor of shape "
                          f"{tuple(ids.shape)}")
    return ids


def one_token(tokenizer, word) -> int:
    """The id of a word that is a single token, tried with a leading space first; ids pass through.

    >>> one_token(model.tokenizer, "Mary")
    195

    Raises GimkitError, listing the pieces, when the word splits into several tokens.
    """
    if isinstance(word, int) or (isinstance(word, torch.Tensor) and word.dim() == 0 and not word.is_floating_point()):
        return int(word)
    if not isinstance(word, str):
        raise GimkitError(f"a token is a text or an id, not {type(word).__name__}")
    if tokenizer is None:
        raise GimkitError("the model has no tokenizer, so give token ids instead of texts")
    spellings = [word] if word.startswith(" ") else [" " + word, word]
    found = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
    unknown = [] if word == tokenizer.unk_token else [tokenizer.unk_token_id]
    whole = [ids for ids in found if len(ids) == 1 and ids != unknown]
    return _single(tokenizer, word, (whole or found)[0])


def spell(tokenizer, token: int) -> str:
    """A token's text as people read it, its id without a tokenizer.

    >>> spell(model.tokenizer, 195)
    'Mary'
    """
    return str(token) if tokenizer is None else tokenizer.decode([token]) or str(token)


def neutral_token(tokenizer) -> int:
    """The id of the token that stands for "nothing here": mask, space or padding, whichever exists first.

    Raises GimkitError when there is no tokenizer, or none of them.
    """
    if tokenizer is None:
        raise GimkitError("the model has no tokenizer, so give baseline= as the neutral token's id")
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    space = tokenizer(" ", add_special_tokens=False)["input_ids"]
    if len(space) == 1:
        return space[0]
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    raise GimkitError("the tokenizer has no mask, space or padding token; give baseline= as a token's text or id")
