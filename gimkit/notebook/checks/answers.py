"""Helpers of all checks: is there an answer, is it right, and which mistake is it."""

import functools
import textwrap
from collections.abc import Callable

import torch


class WrongAnswer(AssertionError):
    """A wrong answer to an exercise. Jupyter shows its sentence in a box and no traceback."""

    def _render_traceback_(self) -> list[str]:
        lines = textwrap.wrap(str(self), 88)
        width = max(map(len, lines))
        edge = "─" * (width + 2)
        return [f"┌{edge}┐", *(f"│ {line:<{width}} │" for line in lines), f"└{edge}┘"]


def exercise(check: Callable[..., None]) -> Callable[..., None]:
    """A check that raises `WrongAnswer`, for a lesson of its own and for a value that was not saved in a trace.

    >>> exercise(recognise)([2.0], [([2.0], "This is twice the effect.")])
    Traceback (most recent call last):
    gimkit.notebook.checks.answers.WrongAnswer: This is twice the effect.

    Args:
        check: a function that prints "Correct: ..." or raises AssertionError.

    Returns:
        The same function, with the other error.
    """
    @functools.wraps(check)
    def checked(*given) -> None:
        try:
            check(*given)
        except UnboundLocalError as error:  # what nnsight does not save has no value after the block
            name = str(error).split("'")[1]
            lesson = (f"{name} has no value after the trace. A value made inside the `with` block is lost at its end "
                      "unless you save it: write .save() after it.")
        except AssertionError as error:
            lesson = str(error)
        else:
            return
        raise WrongAnswer(lesson)

    return checked


def unwritten(answer, task: str) -> bool:
    """Whether the exercise is still a stub; if so, print what to do.

    >>> unwritten(None, "return a number.")
    Your turn: return a number.
    True
    """
    if answer is None or answer is ...:
        print(f"Your turn: {task}")
        return True
    return False


def close(a, b) -> bool:
    """Whether two results are equal up to rounding, relative to the larger one; False where shapes differ.

    >>> close([1.0, 2.0], [1.0, 2.000001]), close([1.0], [1.0, 1.0])
    (True, False)
    """
    a, b = (torch.as_tensor(t, dtype=torch.float64) for t in (a, b))
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * (a.abs().max() + b.abs().max()) + 1e-9)


def recognise(answer, mistakes) -> None:
    """Raise the lesson of the first mistake that has the answer's result.

    >>> recognise([2.0], [([1.0], "The sign is reversed."), ([2.0], "This is twice the effect.")])
    Traceback (most recent call last):
    AssertionError: This is twice the effect.

    Args:
        answer: the result to check.
        mistakes: pairs (result of the mistake, lesson).
    """
    for result, lesson in mistakes:
        assert not close(answer, result), lesson


def same_bits(answer, value, name: str) -> None:
    """Raise AssertionError unless two tensors agree in every bit.

    >>> same_bits(torch.ones(2), torch.ones(2), "q")
    """
    assert isinstance(answer, torch.Tensor), f"{name} must be a tensor, not {type(answer).__name__}."
    assert answer.shape == value.shape, f"{name} has shape {list(answer.shape)}, it should be {list(value.shape)}."
    assert close(answer.detach(), value), (
        f"{name} changed its value: a rule may touch the gradient only. Build it from x.detach(), which has x's value "
        "and no gradient, plus something that is zero in value.")
    assert torch.equal(answer.detach(), value), (
        f"{name} is right up to rounding, but not bit for bit. Let the added term be exactly zero, as in "
        "a * (x - x.detach()).")


def gradients_of(output, upstream, inputs, name: str) -> list:
    """The gradients of the inputs; AssertionError where none arrives.

    >>> x = torch.ones(2, requires_grad=True)
    >>> gradients_of(3 * x, torch.ones(2), [x], "your product")
    [tensor([3., 3.])]
    """
    assert output.requires_grad, f"No gradient flows through {name}: something was detached that should not be."
    gradients = torch.autograd.grad(output, inputs, upstream, allow_unused=True, retain_graph=True)
    for gradient, label in zip(gradients, ("the first input", "the second input", "the third input")):
        assert gradient is not None, f"In {name} no gradient reaches {label}: it was detached everywhere."
    return list(gradients)


def random_numbers(*shape, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64, the same for the same seed.

    >>> random_numbers(2, 3).shape
    torch.Size([2, 3])
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
