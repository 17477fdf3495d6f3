"""GIM's rules pushed forward as tangents, where there is no autograd (NDIF's sandbox)."""

from gimkit.jvp.modes import check_backend, in_either_mode
from gimkit.jvp.plan import plan_of
from gimkit.jvp.scores import forward_task_scores, forward_token_scores

__all__ = ["check_backend", "forward_task_scores", "forward_token_scores", "in_either_mode", "plan_of"]
