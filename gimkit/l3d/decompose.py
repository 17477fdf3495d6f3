"""The decomposition of a model's parameters into subnetworks."""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import torch
from torch.func import stack_module_state, vmap

from gimkit.errors import GimkitError
from gimkit.l3d.decomposition import Decomposition, described
from gimkit.l3d.gradients import DIVERGENCES, chosen, outputs_of, per_sample_gradients
from gimkit.l3d.training import Settings, Trained, settings_of, train
from gimkit.model.apply import check_unedited
from gimkit.remote.trace import LOCK, steady


def decompose(module, inputs, *, parameters=None, seed: int = 0, chunk: int | None = None, checkpoint=None,
              progress: bool = True, **settings) -> Decomposition:
    """Subnetworks: directions in parameter space, few of which rebuild any sample's gradient.

    >>> module, inputs = gimkit.l3d.toys.Linear2(5, 2, 5), torch.rand(200, 5)
    >>> found = gimkit.l3d.decompose(module, inputs, n=5, epochs=2)        # 1000 epochs, unless told otherwise
    >>> found.p_act.shape, [part.shape for part in found.subnetwork(0).values()]
    (torch.Size([5]), [torch.Size([5, 2]), torch.Size([2, 5]), torch.Size([5])])

    module: any `torch.nn.Module` (or an nnsight model around one) whose output is [samples, outputs]; it is used in
    evaluation mode and not changed. inputs: a tensor [samples, ...], or a tuple of them for several arguments.
    parameters: names or shell patterns of the tensors to decompose, None for all. seed: of the start, the order of the
    samples and their references. chunk: samples at a time in the gradients, None for a whole batch; it bounds memory.
    checkpoint: a path; NAME.safetensors and NAME.json are written after every epoch, and read back to go on.
    progress: show a bar. settings: see `Settings`; n, the number of subnetworks, has no default.

    Raises GimkitError: no such parameter, a rank larger than an axis, fewer than two samples, a gradient that is zero
    everywhere, NaN, a checkpoint of another decomposition.
    Source: section 2 and algorithm 1 of arXiv 2504.00194, as its text has them; `Settings` and `DIVERGENCES` name what
    the reference implementation does otherwise.
    """
    (module, inputs), settings = given(module, inputs), Settings(**settings)
    with evaluating([module]):
        values = chosen(module, parameters)
        ranks, divergence = ranks_of(settings.rank, values), divergence_of(settings.divergence)
        outputs = outputs_of(module, inputs)

        def gradients_at(rows, references):
            return per_sample_gradients(module, values, tuple(part[rows] for part in inputs), outputs[references],
                                        divergence, chunk)

        about = described(values, settings_of(settings), seed, fingerprint=fingerprint(values, inputs, outputs))
        state = Trained([value.shape for value in values.values()], ranks, settings, [seed])
        train(state, gradients_at, len(outputs), checkpoint and (checkpoint, about), progress)
    return Decomposition.of(about, {name: tensor.clone() for name, tensor in state.tensors().items()})


def decompose_alike(modules, inputs, *, seeds, progress: bool = True, **settings) -> list[Decomposition]:
    """`decompose` for several small modules of one class at once, each with its own samples and seed.

    >>> modules = [gimkit.l3d.toys.Linear2(5, 2, 5) for _ in range(3)]
    >>> len(gimkit.l3d.decompose_alike(modules, [torch.rand(200, 5)] * 3, seeds=range(3), n=5, epochs=2))
    3

    modules: a list, at least two. inputs: as many tensors [samples, ...]. seeds: as many. Every parameter is
    decomposed. The numbers are those of one `decompose` each, up to rounding.
    """
    settings, seeds = Settings(**settings), list(seeds)
    if not len(modules) == len(inputs) == len(seeds) >= 2:
        raise GimkitError(f"{len(modules)} modules, {len(inputs)} inputs, {len(seeds)} seeds: give as many of each, at "
                          "least two")
    with evaluating(modules):
        values = [chosen(module) for module in modules][0]
        ranks, divergence = ranks_of(settings.rank, values), divergence_of(settings.divergence)
        outputs = torch.stack([outputs_of(module, (x,)) for module, x in zip(modules, inputs)])
        stacked = {name: value.detach() for name, value in stack_module_state(list(modules))[0].items()}
        x, which = torch.stack(list(inputs)), torch.arange(len(seeds))[:, None]

        def of_one(values, x, references):
            return per_sample_gradients(modules[0], values, (x,), references, divergence)

        def gradients_at(rows, references):
            return vmap(of_one)(stacked, x[which, rows], outputs[which, references])

        state = Trained([value.shape for value in values.values()], ranks, settings, seeds)
        train(state, gradients_at, x.shape[1], progress=progress)
    found = []
    for i, seed in enumerate(seeds):
        tensors = {name: (tensor[:, i] if name == "errors" else tensor[i]).clone()
                   for name, tensor in state.tensors().items() if not name.startswith("adamw")}
        found.append(Decomposition.of(described(values, settings_of(settings), seed), tensors))
    return found


def given(module, inputs) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The torch module, also out of an nnsight model, and its inputs as a tuple of ordinary tensors.

    Raises:
        GimkitError: an edited model, for its rules act in traces, and L3D opens none.
    """
    check_unedited(module)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.inference_mode(False):
        inputs = tuple(part.clone() if part.is_inference() else part for part in inputs)
    return getattr(module, "_module", module), inputs


@contextmanager
def evaluating(modules, gradients: bool = True):
    """Modules without dropout and batch statistics, each part back in its mode afterwards; else as `steady`."""
    with LOCK:
        modes = [(part, part.training) for module in modules for part in module.modules()]
        try:
            for module in modules:
                module.eval()
            with ExitStack() as states:
                for module in modules:
                    states.enter_context(steady(module, gradients))
                yield
        finally:
            for part, mode in modes:
                part.training = mode


def divergence_of(name: str) -> Callable:
    """The divergence of that name."""
    if name not in DIVERGENCES:
        raise GimkitError(f"unknown divergence {name!r}; use {', '.join(DIVERGENCES)}")
    return DIVERGENCES[name]


def ranks_of(rank, values: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """The Tucker ranks of each parameter's axes.

    >>> ranks_of(2, {"weight": torch.zeros(5, 3), "bias": torch.zeros(5)})
    [(2, 2), (1,)]

    Raises GimkitError for a rank larger than its axis, or that is missing.
    """
    found = []
    for name, value in values.items():
        if isinstance(rank, dict):
            if name not in rank:
                raise GimkitError(f"no rank for {name}, which is {list(value.shape)}: give one per axis of every "
                                  "chosen parameter")
            ranks = tuple(rank[name])
        else:
            ranks = (rank,) * value.ndim if value.ndim > 1 else (1,) * value.ndim
        if len(ranks) != value.ndim:
            raise GimkitError(f"{len(ranks)} ranks for {name}, which is {list(value.shape)}: give one per axis")
        for axis, (r, size) in enumerate(zip(ranks, value.shape)):
            if not 1 <= r <= size:
                raise GimkitError(f"rank {r} does not fit axis {axis} of {name}, which is {list(value.shape)}: "
                                  "at least 1, at most the axis's length; ranks by name are possible")
        found.append(ranks)
    return found


def fingerprint(values, inputs, outputs) -> str:
    """Which weights and samples a checkpoint belongs to."""
    digest = hashlib.sha256()
    for tensor in (*values.values(), *inputs, outputs):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
