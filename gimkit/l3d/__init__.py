"""Local loss landscape decomposition (L3D, arXiv 2504.00194): circuits as directions in parameter space.

The examples of this package share a toy and its decomposition, trained too briefly for anything but examples:

>>> toy = gimkit.l3d.toys.train("tms", seeds=[0], epochs=2, n=1000)[0]                 # 1000 epochs by default
>>> found = gimkit.l3d.decompose(toy.module, toy.inputs(200), n=5, epochs=2)           # 1000 epochs by default
"""

from gimkit.l3d import toys
from gimkit.l3d.decomposition import Decomposition, decompose, decompose_alike
from gimkit.l3d.language import NextToken
from gimkit.l3d.selection import Activity, activity

__all__ = ["Activity", "Decomposition", "NextToken", "activity", "decompose", "decompose_alike", "toys"]
