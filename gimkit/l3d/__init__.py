"""Local loss landscape decomposition (L3D): circuits as directions in parameter space.

>>> module, inputs = gimkit.l3d.toys.Linear2(5, 2, 5), torch.rand(200, 5)
>>> found = gimkit.l3d.decompose(module, inputs, n=5, epochs=2)            # 1000 epochs, unless told otherwise
"""

from gimkit.l3d import toys
from gimkit.l3d.activity import Activity, activity
from gimkit.l3d.decompose import decompose, decompose_alike
from gimkit.l3d.decomposition import Decomposition
from gimkit.l3d.language import NextToken

__all__ = ["Activity", "Decomposition", "NextToken", "activity", "decompose", "decompose_alike", "toys"]
