"""What whole_service.py gives NDIF so that it runs without a GPU: a controller and a model actor on the CPU.

Ray imports this file in its own processes, which know nothing of gimkit.
"""

import functools
import json

import ray
import torch
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.sandbox import host
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.mixins.remotable import CheckpointInfo, Remotable
from transformers import AutoConfig


def prepare() -> None:
    """In each of Ray's processes: what needs a GPU or the hub, and one misfit of versions."""
    torch.cuda.synchronize = lambda *_: None  # called between requests, GPU or not
    # ndif 0.1.2 passes trust_remote_code, which nnsight 0.8.1 does not know; and only the hub would tell a size
    Remotable.describe_checkpoint = describe
    Remotable.max_tp_size = lambda *_, **__: None


def describe(model_key: str, *_, **__):
    """A made-up size, and the model's config, which tells the service's status the model's name."""
    config = AutoConfig.from_pretrained(json.loads(model_key.partition(":")[2])["repo_id"])
    return CheckpointInfo(size_bytes=2**24, n_params=2**22, config=config)


@ray.remote(num_cpus=0, num_gpus=0, max_restarts=0, resources={"head": 1})
class Controller(_ControllerActor):
    """NDIF's controller."""

    def __init__(self, *arguments, **options):
        prepare()
        _ControllerActor.__init__(self, *arguments, **options)


@ray.remote(num_cpus=0, max_restarts=0)
class Model(SandboxModelDeployment):
    """NDIF's actor with its sandbox, its weights on the CPU; one spare sandbox, as each takes a core to start."""

    def __init__(self, *arguments, **options):
        host.spawn = functools.partial(host.spawn, timeout=180)
        host.RUNNER_ENV = (*host.RUNNER_ENV, "HF_HUB_OFFLINE")
        SandboxModelDeployment.__init__(self, *arguments, pool_size=1, **options)

    def load_from_disk(self):
        prepare()
        torch.set_num_threads(1)
        model = Remotable.from_model_key(self.model_key, dispatch=True, dtype=self.dtype_name)
        model._module.requires_grad_(False)
        return model
