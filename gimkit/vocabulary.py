"""Between texts and token ids, with errors that say what went wrong."""

import torch

from gimkit.errors import GimkitError


def encode(tokenizer, prompt) -> torch.Tensor:
    """Token ids [seq] of a text (with the tokenizer's own start token), or of ids given as a list or tensor.

    >>> encode(model.tokenizer, "Mary went home").shape
    torch.Size([4])

    Raises GimkitError for an empty prompt, and for a text without a tokenizer.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise GimkitError("the prompt is empty; give at least one word")
        if tokenizer is None:
            raise GimkitError("the model has no tokenizer, so give token ids instead of a text")
        prompt = tokenizer(prompt)["input_ids"]
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
    17

    Raises GimkitError, listing the pieces, when the word splits into several tokens.
    """
    if isinstance(word, int) or (isinstance(word, torch.Tensor) and word.dim() == 0 and not word.is_floating_point()):
        return int(word)
    if not isinstance(word, str):
        raise GimkitError(f"a token is a text or an id, not {type(word).__name__}")
    if tokenizer is None:
        raise GimkitError("the model has no tokenizer, so give token ids instead of texts")
    spellings = [word] if word.startswith(" ") else [" " + word, word]
    for spelling in spellings:
        pieces = tokenizer(spelling, add_special_tokens=False)["input_ids"]
        if len(pieces) == 1 and (pieces[0] != tokenizer.unk_token_id or word == tokenizer.unk_token):
            return pieces[0]
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(spellings[0], add_special_tokens=False)["input_ids"])
    if tokenizer.unk_token is not None and tokenizer.unk_token in pieces:
        raise GimkitError(f"{word!r} is not in the tokenizer's vocabulary; choose a word that it knows")
    raise GimkitError(f"{word!r} is not one token but {len(pieces)}: {', '.join(map(repr, pieces))}; "
                      "choose a word that is a single token, or give a token id")


def spell(tokenizer, token: int) -> str:
    """A token's text as people read it, its id without a tokenizer.

    >>> spell(model.tokenizer, 17)
    'Mary'
    """
    return str(token) if tokenizer is None else tokenizer.decode([token]) or str(token)
