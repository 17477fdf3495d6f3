"""Everything particular to NDIF: which modules travel with a trace, and how a trace is sent there."""

import nnsight

# An installed package does not ship itself; these modules' functions run inside traces.
SHIPPED = ("gimkit.errors", "gimkit.rules", "gimkit.inside", "gimkit.traced", "gimkit.traced_layers",
           "gimkit.circuits.traced", "gimkit.circuits.streams", "gimkit.circuits.between", "gimkit.circuits.within",
           "gimkit.circuits.gradients", "gimkit.circuits.runs", "gimkit.circuits.one_edge",
           "gimkit.circuits.attention", "gimkit.forward.arithmetic", "gimkit.forward.pushing",
           "gimkit.forward.starting", "gimkit.selfrepair.traced_scores", "gimkit.selfrepair.traced_heads")


def register() -> None:
    """Tell nnsight to send gimkit's traced functions by value, so that a server needs no gimkit."""
    for name in SHIPPED:
        nnsight.register(name)


def where(remote: bool) -> dict:
    """The trace's keyword for running remotely; models that cannot are not given it.

    >>> where(False)
    {}
    """
    return {"remote": remote} if remote else {}
