"""Backward pass or forward mode: which one computes the scores."""

import warnings

from gimkit.errors import GimkitError

BACKENDS = ("auto", "reverse", "forward")
REFUSALS = ("appears to not have been used in the graph", "does not require grad and does not have a grad_fn")


def check_backend(backend: str) -> None:
    """Refuse an unknown backend."""
    if backend not in BACKENDS:
        raise GimkitError(f"unknown backend {backend!r}; use {', '.join(BACKENDS)}")


def in_either_mode(backend: str, reverse, forward, remote):
    """The result of reverse() or of forward(); "auto" is reverse, and forward where a server refuses gradients.

    forward: why there is none, where it is a text; that is then the GimkitError.

    >>> in_either_mode("forward", lambda: "by a backward pass", lambda: "by tangents", remote=False)
    'by tangents'
    """
    if backend == "forward":
        if isinstance(forward, str):
            raise GimkitError(forward)
        return forward()
    try:
        return reverse()
    except Exception as error:
        if backend == "reverse" or not remote or not gradients_refused(error):
            raise
        if isinstance(forward, str):
            raise GimkitError(f"the server refuses gradients to this key, and {forward}") from error
    warnings.warn("the server refuses gradients to this key, so the scores are computed in forward mode: the same "
                  "numbers, with more rows in place of a backward pass", stacklevel=3)
    return forward()


def gradients_refused(error: BaseException | None) -> bool:
    """Is this what torch.autograd.grad says in NDIF's sandbox, where no graph joins the tensors that a trace reads?"""
    while error is not None:
        if any(words in str(error) for words in REFUSALS):
            return True
        error = error.__cause__ or error.__context__
    return False
