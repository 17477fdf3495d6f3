"""Self-repair: what is left of an effect when other attention scores, or later heads, compensate for an ablated one."""

from gimkit.selfrepair.attention import SelfRepair, self_repair
from gimkit.selfrepair.heads import HeadRepair, head_repair

__all__ = ["HeadRepair", "SelfRepair", "head_repair", "self_repair"]
