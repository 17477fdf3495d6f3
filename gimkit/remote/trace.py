"""The one place that runs a model: here, or on a server that has no gimkit."""

import pkgutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import anyio
import nnsight
import torch
from nnsight.intervention.envoy import Envoy

from gimkit import interventions
from gimkit.errors import GimkitError
from gimkit.interventions.token_scores import on_cpu
from gimkit.model.load import ON_LOAD
from gimkit.remote.server import send_safely, server_of
from gimkit.remote.transport import MALFORMED

JOB: ContextVar = ContextVar("job", default=None)  # the `Job` that runs in this thread
LOCK = threading.RLock()  # nnsight has one state per process

# Modules whose functions run inside traces; nnsight does not send an installed package by itself.
SHIPPED = ("gimkit.errors", *(f"{interventions.__name__}.{found.name}" for found in
                              pkgutil.iter_modules(interventions.__path__)))


def register() -> None:
    """Make nnsight send gimkit's traced functions by value, so that a server needs no gimkit.

    >>> register()                                               # `import gimkit` has done it

    Models from `gimkit.load` then also read the results of servers without executing anything in them, and
    `anyio.run` works.
    """
    for name in SHIPPED:
        nnsight.register(name)
    if send_safely not in ON_LOAD:
        ON_LOAD.append(send_safely)
    # nnsight gives every object a .save, and anyio refuses classes with an attribute that has no annotation
    anyio.TypedAttributeSet.__annotations__["save"] = object


def in_trace(model: Envoy, ids: torch.Tensor, body: Callable, *arguments: Any, remote: bool | str = False,
             gradients: bool = True) -> Any:
    """The result of body(model, *arguments) inside a trace; its tensors come back on the CPU.

    >>> from gimkit.interventions.token_scores import last_values
    >>> from gimkit.model.architecture import unembedding_of
    >>> values, answers = in_trace(model, task.clean[:2], last_values, unembedding_of(model), [7])
    >>> values.shape
    torch.Size([2, 2])

    Only the ids, the arguments and the functions go to a server, and only the result comes back.

    Args:
        model: an nnsight model.
        ids: token ids [rows, seq].
        body: a function of a module in SHIPPED.
        arguments: names, numbers, tensors, and tuples, lists and dicts of them.
        remote: as in `gimkit.attribute`.
        gradients: whether body computes gradients.

    Returns:
        What body returns.

    Raises:
        GimkitError: as in `steady`.
    """
    with _around(model, remote, gradients):
        ids, arguments, found = plain(ids), plain(arguments), None
        with model.trace(input_ids=ids, use_cache=False, **where(model, remote)):
            found = on_cpu(body(model, *arguments)).save()
    return _arrived(found)


def in_session(model: Envoy, body: Callable, *arguments: Any, remote: bool | str = False,
               gradients: bool = True) -> Any:
    """As `in_trace`, for a body that opens its own traces: together they are one request.

    >>> from gimkit.interventions.circuit_runs import whole_circuit
    >>> from gimkit.model.residual_stream import graph_of, residual_stream_of
    >>> from gimkit.tasks.task import answers_of
    >>> w, some = residual_stream_of(model), task[:2]
    >>> whole, own = in_session(model, whole_circuit, some.clean, some.corrupt, w, graph_of(w).real[None],
    ...                         answers_of(some), gradients=False)
    >>> torch.allclose(whole, own, atol=1e-4)
    True

    Args:
        model, body, arguments, remote, gradients: as in `in_trace`.

    Returns:
        What body returns.
    """
    with _around(model, remote, gradients):
        arguments, found = plain(arguments), None
        with model.session(**where(model, remote)):
            found = on_cpu(body(model, *arguments)).save()
    return _arrived(found)


def _arrived(found: Any) -> Any:
    """A trace's result; an error where a server did not send it."""
    if found is None:
        raise GimkitError(MALFORMED)
    return found


def _around(model: Envoy, remote: bool | str, gradients: bool) -> AbstractContextManager:
    """The context of a trace: `steady` in this process; on a server only inference mode is switched off."""
    if remote and remote != "local":
        return torch.inference_mode(False)
    if getattr(model, "dispatched", True) is False:  # nnsight has not loaded the weights yet
        model.dispatch()
    return steady(model._module, gradients)


@contextmanager
def steady(module: torch.nn.Module, gradients: bool = True) -> Iterator[None]:
    """A context in which a model's forward passes depend on nothing but the model and its inputs.

    >>> with steady(model._module, gradients=False):
    ...     model._module(task.clean[:2]).logits.shape
    torch.Size([2, 24, 561])

    One thread runs at a time, and autocast is off: the model computes in its own dtype.

    Args:
        module: a model on any devices.
        gradients: on or off inside, independent of the surrounding `torch.no_grad` or `torch.inference_mode`.

    Raises:
        GimkitError: as in `_check_state`; or the forward pass drew random numbers (active dropout, or other noise).
    """
    with LOCK, torch.inference_mode(False), torch.set_grad_enabled(gradients):
        _check_state(module)
        devices = {parameter.device for parameter in module.parameters()}
        problem, before = None, _random_states(devices)
        with ExitStack() as settings:
            for kind in {device.type for device in devices}:
                settings.enter_context(torch.autocast(kind, enabled=False))
            try:
                yield
            except Exception as error:  # random numbers may be its cause
                problem = error
        if _random_states(devices) != before:
            raise GimkitError(f"{type(module).__name__} drew random numbers in its forward pass (dropout in training "
                              "mode?), so no two runs are alike; call model.eval() first") from problem
        if problem is not None:
            raise problem


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which torch's random numbers come from a seed; afterwards its generator is as before.

    >>> with seeded(0):
    ...     torch.rand(1)
    tensor([0.4963])

    One thread runs at a time.
    """
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _random_states(devices: Iterable[torch.device]) -> list[bytes]:
    """The state of torch's generators that a model on these devices may draw from."""
    states = [torch.get_rng_state()]
    for device in devices:
        if device.type != "cpu":
            state_of = torch.get_device_module(device).get_rng_state
            states.append(state_of() if device.type == "mps" else state_of(device))  # there is one mps
    return [state.numpy().tobytes() for state in states]


def _check_state(module: torch.nn.Module) -> None:
    """Refuse weights that are not in memory or were made in inference mode, checkpointed blocks, and tuple outputs."""
    name = type(module).__name__
    for path, parameter in module.named_parameters():
        if parameter.is_meta:
            raise GimkitError(f"{name}: the weights of {path} are not in memory (offloaded to CPU or disk, or never "
                              "loaded); load the whole model, for example with dtype=torch.bfloat16, or run it on a "
                              "server with remote=True")
        if parameter.is_inference():
            raise GimkitError(f"{name}: {path} was made in torch.inference_mode(), so no gradient can pass it; load "
                              "the model outside of it")
    if any(part.training and getattr(part, "gradient_checkpointing", False) for part in module.modules()):
        raise GimkitError(f"{name} checkpoints its blocks, so they would run again in the backward pass, without what "
                          "a trace changes; call model.eval() or model.gradient_checkpointing_disable() first")
    if getattr(getattr(module, "config", None), "return_dict", True) is False:
        raise GimkitError(f"{name} returns tuples, which have no names to read; set model.config.return_dict = True")


def plain(value: Any) -> Any:
    """A value that a server can read: named tuples become namespaces with the same names, views of tensors copies.

    >>> from gimkit.model.architecture import Norm
    >>> plain(Norm("model.norm", 1e-6, False)).path
    'model.norm'

    A server does not know gimkit's classes, and a view would be sent with the whole tensor that it is a part of.
    Tensors made in `torch.inference_mode` become ordinary ones, which a backward pass can use.
    """
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        return SimpleNamespace(**{name: plain(part) for name, part in zip(names, value)})
    if isinstance(value, tuple | list):
        return type(value)(plain(part) for part in value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, torch.Tensor) and (value.is_inference() or value.untyped_storage().nbytes() > value.nbytes):
        return value.clone(memory_format=torch.contiguous_format)
    return value


def where(model: Envoy, remote: bool | str) -> dict:
    """The options of a trace or a session that runs where `remote` states; none for a run in this process.

    >>> where(model, False)
    {}

    Args:
        model: an nnsight model.
        remote: as in `gimkit.attribute`.

    Returns:
        Keyword arguments of `model.trace` or `model.session`.
    """
    if not remote:
        return {}
    if remote == "local":
        return {"remote": "local"}
    server = server_of(model, remote)
    server.job = JOB.get()
    return {"backend": server}
