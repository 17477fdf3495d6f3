"""Local loss landscape decomposition (L3D): circuits as directions in parameter space.

>>> found = gimkit.l3d.decompose(module, inputs, n=5)
"""

from gimkit.l3d import toys
from gimkit.l3d.activity import Activity, activity
from gimkit.l3d.decompose import decompose, decompose_alike
from gimkit.l3d.found import Decomposition
from gimkit.l3d.language import NextToken

__all__ = ["Activity", "Decomposition", "NextToken", "activity", "decompose", "decompose_alike", "toys"]
