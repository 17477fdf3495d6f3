"""The choice between a backward pass and forward mode."""

import warnings
from collections.abc import Callable
from typing import Literal, TypeVar, get_args

from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError
from gimkit.remote.capabilities import gives_gradients

Backend = Literal["auto", "reverse", "forward"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Scores = TypeVar("Scores")


def check_backend(backend: str) -> None:
    """Refuse an unknown backend."""
    if backend not in BACKENDS:
        raise GimkitError(f"unknown backend {backend!r}; use {', '.join(BACKENDS)}")


def by_backend(model: Envoy, backend: Backend, reverse: Callable[[], Scores], forward: Callable[[], Scores] | str,
               remote: bool | str) -> Scores:
    """The result of reverse() or of forward(), by `backend` as in `gimkit.attribute`.

    >>> by_backend(model, "forward", lambda: "by a backward pass", lambda: "by tangents", remote=False)
    'by tangents'

    Args:
        forward: a text instead of a function is the reason why there is no forward mode, and the error's message.

    Raises:
        GimkitError: forward mode is needed and there is none.
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
