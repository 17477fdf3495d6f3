"""What a server allows with this key."""

from weakref import WeakKeyDictionary

import nnsight
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.interventions.jvp import gradient_arrives
from gimkit.model.architecture import architecture_of
from gimkit.remote.trace import in_trace

KNOWN: WeakKeyDictionary = WeakKeyDictionary()  # model -> {(remote, host, key): whether the server gives gradients}


def gives_gradients(model: Envoy, remote: bool | str = False) -> bool:
    """Does a gradient reach from a trace's logits to its embeddings? Not in NDIF's sandbox for ordinary keys.

    >>> gives_gradients(model)
    True

    A request of one token finds out; the result is kept for this model, host and key.
    """
    known, server = KNOWN.setdefault(model, {}), (str(remote), nnsight.CONFIG.API.HOST, nnsight.CONFIG.API.APIKEY)
    if server not in known:
        embedding = architecture_of(model).embedding
        known[server] = in_trace(model, torch.zeros(1, 1, dtype=torch.long), gradient_arrives, embedding, remote=remote)
    return known[server]
