"""Backward pass or forward mode: which one computes the scores."""

import warnings

from gimkit.errors import GimkitError
from gimkit.remote.capabilities import gives_gradients

BACKENDS = ("auto", "reverse", "forward")


def check_backend(backend: str) -> None:
    """Refuse an unknown backend."""
    if backend not in BACKENDS:
        raise GimkitError(f"unknown backend {backend!r}; use {', '.join(BACKENDS)}")


def in_either_mode(model, backend: str, reverse, forward, remote):
    """The result of reverse() or of forward(); "auto" is reverse, and forward where a server refuses gradients.

    >>> in_either_mode(model, "forward", lambda: "by a backward pass", lambda: "by tangents", remote=False)
    'by tangents'

    forward: why there is none, where it is a text; that is then the GimkitError.
    """
    refused = backend == "auto" and remote and not gives_gradients(model, remote)
    if backend != "forward" and not refused:
        return reverse()
    if isinstance(forward, str):
        raise GimkitError(f"the server refuses gradients to this key, and {forward}" if refused else forward)
    if refused:
        warnings.warn("the server refuses gradients to this key, so the scores are computed in forward mode: the same "
                      "numbers, with more rows in place of a backward pass", stacklevel=3)
    return forward()


