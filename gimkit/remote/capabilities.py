"""What a server lets this key do."""

from weakref import WeakKeyDictionary

import nnsight
import torch

from gimkit.interventions.jvp import gradient_arrives
from gimkit.model.architecture import architecture_of
from gimkit.remote.trace import in_trace

ANSWERS = WeakKeyDictionary()  # model -> {(where, host, key): whether it gives gradients}


def gives_gradients(model, remote=False) -> bool:
    """Does autograd reach from a trace's logits to its embeddings? Not in the sandbox of an ordinary NDIF key.

    >>> gives_gradients(model)
    True

    A server is asked once, by a request of its own (one token), and its answer holds for this host, key and model.
    """
    asked = (str(remote), nnsight.CONFIG.API.HOST, nnsight.CONFIG.API.APIKEY)
    known = ANSWERS.setdefault(model, {})
    if asked not in known:
        embedding = architecture_of(model).embedding
        known[asked] = in_trace(model, torch.zeros(1, 1, dtype=torch.long), gradient_arrives, embedding, remote=remote)
    return known[asked]
