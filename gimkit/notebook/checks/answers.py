"""What every check uses: whether an answer is there, whether it is right, and which mistake it is."""

import torch


def unwritten(answer, task: str) -> bool:
    """Whether an answer is still the stub's; if so, say what to do."""
    if answer is None or answer is ...:
        print(f"Your turn: {task}")
        return True
    return False


def close(a, b) -> bool:
    """Equal up to rounding, relative to the larger one; False for shapes that differ."""
    a, b = (torch.as_tensor(t, dtype=torch.float64) for t in (a, b))
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * (a.abs().max() + b.abs().max()) + 1e-9)


def recognise(answer, mistakes) -> None:
    """Raise the lesson of the first mistake, (result of the mistake, lesson), that equals the answer."""
    for result, lesson in mistakes:
        assert not close(answer, result), lesson


def same_bits(answer, value, name: str) -> None:
    """Raise unless two tensors agree in every bit."""
    assert isinstance(answer, torch.Tensor), f"{name} must be a tensor, not {type(answer).__name__}."
    assert answer.shape == value.shape, f"{name} has shape {list(answer.shape)}, it should be {list(value.shape)}."
    assert close(answer.detach(), value), (
        f"{name} changed its value: a rule may touch the gradient only. Build it from x.detach(), which has x's value "
        "and no gradient, plus something that is zero in value.")
    assert torch.equal(answer.detach(), value), (
        f"{name} is right up to rounding, but not bit for bit. Let the added term be exactly zero, as in "
        "a * (x - x.detach()).")


def gradients_of(output, upstream, inputs, name: str) -> list:
    """The gradients of the inputs; raise where none arrives."""
    assert output.requires_grad, f"No gradient flows through {name}: something was detached that should not be."
    gradients = torch.autograd.grad(output, inputs, upstream, allow_unused=True, retain_graph=True)
    for gradient, label in zip(gradients, ("the first input", "the second input", "the third input")):
        assert gradient is not None, f"In {name} no gradient reaches {label}: it was detached everywhere."
    return list(gradients)


def random_numbers(*shape, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
