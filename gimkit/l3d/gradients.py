"""A module as L3D runs it, and its gradients: one for each sample, of the divergence from another sample's output."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from typing import Literal, get_args

import torch
from nnsight.intervention.envoy import Envoy
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gimkit.errors import GimkitError, check_known
from gimkit.model.apply import check_unedited
from gimkit.remote.trace import LOCK, steady

Inputs = torch.Tensor | tuple[torch.Tensor, ...]
Divergence = Literal["mse", "mse of the code", "kl"]


def mse(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The mean squared difference of two outputs [n_o].

    >>> mse(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))
    tensor(2.5000)

    Source:
        the "normalised MSE" of the paper, which does not name the norm. A common factor changes neither the errors
        nor the subnetworks.
    """
    return (output - reference).square().mean()


def mse_of_the_code(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The divergence of the reference implementation for toys: the mean of p (p - r), with slope 2 p - r.

    >>> mse_of_the_code(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
    tensor(1.5000)

    Source:
        the reference implementation. The paper's error of 6.4% on circuits in superposition is the squared error
        under this divergence: over five seeds 6.5% [4.9, 8.0]. Under `mse`, as in the text, it is 21.5% [17.6, 25.4]
        (`python -m benchmarks.l3d_runs superposed`).
    """
    return (output * (output - reference)).mean()


def kl(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(softmax(reference) || softmax(output)) in nats, of two rows of logits [n_o].

    >>> kl(torch.zeros(4), torch.zeros(4))
    tensor(0.)
    """
    wanted = reference.log_softmax(-1)
    return (wanted.exp() * (wanted - output.log_softmax(-1))).sum()


DIVERGENCES: dict[str, Callable] = {"mse": mse, "mse of the code": mse_of_the_code, "kl": kl}
assert tuple(DIVERGENCES) == get_args(Divergence)


def divergence_of(name: Divergence) -> Callable:
    """The divergence of that name.

    >>> divergence_of("kl").__name__
    'kl'

    Raises:
        GimkitError: there is no such divergence.
    """
    check_known("divergence", name, DIVERGENCES)
    return DIVERGENCES[name]


def module_and_inputs(module: Envoy | torch.nn.Module,
                      inputs: Inputs) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The torch module, also out of an nnsight model, and its inputs as a tuple of ordinary tensors.

    >>> module, (x,) = module_and_inputs(toy.module, torch.rand(7, 5))

    Args:
        module: a torch module, or an nnsight model around one.
        inputs: a tensor [samples, ...], or a tuple of them, one for each argument of the module.

    Raises:
        GimkitError: the model is an edited copy. Its rules act in traces only, and L3D opens none.
    """
    check_unedited(module)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.inference_mode(False):
        inputs = tuple(part.clone() if part.is_inference() else part for part in inputs)
    return getattr(module, "_module", module), inputs


@contextmanager
def evaluating(modules: Iterable[torch.nn.Module], gradients: bool = True) -> Iterator[None]:
    """Modules without dropout and batch statistics; each part is back in its own mode afterwards.

    >>> with evaluating([toy.module]):
    ...     toy.module.training
    False

    Args:
        modules: torch modules.
        gradients: whether torch records a graph; the rest is as in `gimkit.remote.trace.steady`.
    """
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


def chosen_parameters(module: torch.nn.Module, patterns: str | Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """The parameters to decompose, by name.

    >>> list(chosen_parameters(model._module, ["model.layers.2.self_attn.*"]))
    ['model.layers.2.self_attn.q_proj.weight', 'model.layers.2.self_attn.k_proj.weight', ...]

    Args:
        module: a torch module.
        patterns: names or shell patterns; None for all parameters.

    Raises:
        GimkitError: a pattern fits no parameter, or a parameter is not finite.
    """
    named = dict(module.named_parameters())
    patterns = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in named):
            some = ", ".join(list(named)[:4]) + (", ..." if len(named) > 4 else "")
            raise GimkitError(f"no parameter is called {pattern!r}; the model has {some or 'none'}")
    found = {name: value.detach() for name, value in named.items() if any(fnmatch(name, p) for p in patterns)}
    if not found:
        raise GimkitError("no parameters selected: give at least one name or pattern")
    for name, value in found.items():
        if not bool(value.isfinite().all()):
            raise GimkitError(f"the parameter {name} holds NaN or infinite values")
    return found


def outputs_of(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], chunk: int = 256) -> torch.Tensor:
    """The module's outputs on all samples, [n, n_o], without gradients.

    >>> outputs_of(toy.module, (toy.inputs(100),)).shape
    torch.Size([100, 5])

    Args:
        module: a torch module.
        inputs: tensors [n, ...], the module's arguments.
        chunk: samples at a time.

    Raises:
        GimkitError: there are fewer than two samples, the outputs are not [n, n_o], or one is NaN.
    """
    n = len(inputs[0])
    if any(len(part) != n for part in inputs):
        raise GimkitError(f"inputs of {', '.join(str(len(part)) for part in inputs)} samples: give as many of each")
    if n < 2:
        raise GimkitError(f"{n} sample: each one needs another as its reference, give at least two")
    with torch.no_grad():
        outputs = torch.cat([module(*(part[i:i + chunk] for part in inputs)) for i in range(0, n, chunk)])
    if outputs.ndim != 2 or len(outputs) != n:
        raise GimkitError(f"the model's outputs are {list(outputs.shape)}; they must be [samples, outputs]")
    if not bool(outputs.isfinite().all()):
        raise GimkitError("the model's outputs hold NaN or infinite values; check the inputs and the weights")
    return outputs


def random_references(n: int, generator: torch.Generator) -> torch.Tensor:
    """For each of n samples the index of another one at random, [n].

    >>> random_references(2, torch.Generator())
    tensor([1, 0])

    Source:
        section 2 of arXiv 2504.00194. In the reference implementation a sample may be its own reference.
    """
    return (torch.arange(n) + torch.randint(1, n, (n,), generator=generator)) % n


def per_sample_gradients(module: torch.nn.Module, parameters: dict[str, torch.Tensor], inputs: tuple[torch.Tensor, ...],
                         references: torch.Tensor, divergence: Callable = mse,
                         chunk: int | None = None) -> list[torch.Tensor]:
    """Gradients of D(f(x_i), y_i) with respect to the parameters, a tensor [b, *shape] for each parameter.

    >>> x = toy.inputs(32)
    >>> per_sample_gradients(toy.module, chosen_parameters(toy.module), (x,), toy.module(x).roll(1, 0))[0].shape
    torch.Size([32, 5, 2])

    Args:
        module: a torch module. Samples pass through it one by one (`torch.func.vmap`), so that its output must not
            depend on the other samples of a batch.
        parameters: of `chosen_parameters`.
        inputs: tensors [b, ...], the module's arguments.
        references: outputs of other samples, [b, n_o].
        divergence: a function of two outputs [n_o], such as those in `DIVERGENCES`.
        chunk: samples at a time; None for all. Memory grows with it.
    """
    def of_one(values, x, reference):
        output = functional_call(module, values, tuple(part.unsqueeze(0) for part in x))[0]
        return divergence(output, reference)

    one_by_one = vmap(grad(of_one), in_dims=(None, 0, 0), chunk_size=chunk)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        return list(one_by_one(parameters, tuple(inputs), references).values())
