"""GIM's rules pushed forward as tangents, where there is no autograd (NDIF's sandbox)."""

from gimkit.forward.backend import check_backend, in_either_mode
from gimkit.forward.plan import plan_of
from gimkit.forward.running import forward_task_scores, forward_token_scores

__all__ = ["check_backend", "forward_task_scores", "forward_token_scores", "in_either_mode", "plan_of"]
