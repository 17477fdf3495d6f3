"""What whole_service.py gives NDIF so that it runs without a GPU: a controller and a model actor on the CPU.

Ray imports this file in its own processes, which know nothing of gimkit.
"""

import ray
import torch
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.mixins.remotable import CheckpointInfo, Remotable


def prepare() -> None:
    """In each of Ray's processes: what needs a GPU or the hub, and one misfit of versions."""
    torch.cuda.synchronize = lambda *_: None  # called between requests, GPU or not
    # ndif 0.1.2 passes trust_remote_code, which nnsight 0.8.1 does not know; and only the hub would tell a size
    Remotable.describe_checkpoint = classmethod(lambda cls, key, dtype, **_: CheckpointInfo(2**24, 2**22))
    Remotable.max_tp_size = classmethod(lambda cls, key, **_: None)


@ray.remote(num_cpus=0, num_gpus=0, max_restarts=0, resources={"head": 1})
class Controller(_ControllerActor):
    """NDIF's controller."""

    def __init__(self, *arguments, **options):
        prepare()
        _ControllerActor.__init__(self, *arguments, **options)


@ray.remote(num_cpus=0, max_restarts=0)
class Model(SandboxModelDeployment):
    """NDIF's actor with its sandbox, its weights on the CPU."""

    def load_from_disk(self):
        prepare()
        torch.set_num_threads(1)
        model = Remotable.from_model_key(self.model_key, dispatch=True, dtype=self.dtype_name)
        model._module.requires_grad_(False)
        return model
