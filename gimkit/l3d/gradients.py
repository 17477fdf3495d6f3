"""Per-sample gradients of the divergence between a sample's output and another sample's."""

from collections.abc import Callable
from fnmatch import fnmatch

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gimkit.errors import GimkitError


def mse(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The squared distance of two outputs [n_o], divided by their number.

    The paper says "normalised MSE" and not by what; a common factor changes neither errors nor subnetworks.
    """
    return (output - reference).square().mean()


def mse_of_the_code(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """What the reference implementation has for toys: the mean of p (p - r), whose slope is 2 p - r.

    The paper's error of 6.4% on circuits in superposition is this one's, squared: over five seeds 6.5% [4.9, 8.0], and
    with the text's `mse` 21.5% [17.6, 25.4] (`python -m benchmarks.l3d_runs superposed`).
    """
    return (output * (output - reference)).mean()


def kl(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(softmax(reference) || softmax(output)) in nats, of two rows of logits [n_o]."""
    wanted = reference.log_softmax(-1)
    return (wanted.exp() * (wanted - output.log_softmax(-1))).sum()


DIVERGENCES: dict[str, Callable] = {"mse": mse, "mse of the code": mse_of_the_code, "kl": kl}


def chosen(module: torch.nn.Module, patterns=None) -> dict[str, torch.Tensor]:
    """The parameters to decompose, by name; patterns as in a shell, None for all.

    >>> list(chosen(model._module, ["transformer.h.2.attn.*"]))
    ['transformer.h.2.attn.c_attn.weight', 'transformer.h.2.attn.c_attn.bias', ...]

    Raises GimkitError when a pattern fits no parameter, and when a parameter is not finite.
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

    inputs: tensors [n, ...], which the module takes as its arguments.
    Raises GimkitError for fewer than two samples, outputs that are not [n, n_o], and NaN.
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


def others(n: int, generator: torch.Generator) -> torch.Tensor:
    """For each of n samples the index of a random other one, [n].

    Differs from the reference implementation, where a sample may be its own reference.
    """
    return (torch.arange(n) + torch.randint(1, n, (n,), generator=generator)) % n


def per_sample_gradients(module: torch.nn.Module, parameters: dict[str, torch.Tensor], inputs, references,
                         divergence: Callable = mse, chunk: int | None = None) -> list[torch.Tensor]:
    """Gradients of D(f(x_i), y_i) with respect to the parameters, a tensor [b, *shape] per parameter.

    >>> per_sample_gradients(toy, chosen(toy), (x,), y)[0].shape                  # x [32, 5], y [32, 5]
    torch.Size([32, 5, 2])

    inputs: tensors [b, ...]. references: outputs [b, n_o]. chunk: samples at a time, None for all; memory grows with
    it. Samples go through the module one by one (`torch.func.vmap`), so nothing may depend on the batch.
    """
    def of_one(values, x, reference):
        output = functional_call(module, values, tuple(part.unsqueeze(0) for part in x))[0]
        return divergence(output, reference)

    one_by_one = vmap(grad(of_one), in_dims=(None, 0, 0), chunk_size=chunk)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        return list(one_by_one(parameters, tuple(inputs), references).values())
