"""The checks of self-repair, in notebook 03."""

from typing import NamedTuple

import torch

from gimkit.model.architecture import architecture_of
from gimkit.notebook.checks.answers import close, exercise, recognise, unwritten
from gimkit.notebook.checks.saturation import row_effects
from gimkit.selfrepair import head_repair
from gimkit.tasks import ioi

# Scores and values of four attention rows, and how the joint effect of the first two compares with their sum.
ROWS = {
    "A": ((6, 6, 0, 0, 0), (10, 10, 0, 0, 0), "+"),
    "B": ((6, 6, 0, 0, 0), (10, 10, 10, 10, 10), "0"),
    "C": ((6, 6, 0, 0, 0), (10, -10, 0, 0, 0), "0"),
    "D": ((4, 4, 2, 2, 2), (3, 3, 9, 9, 9), "-"),
}
WHY = {
    "A": "lower one, and the other takes its weight and carries the same information: each alone costs little",
    "B": "every position is worth 10, so the output is 10 whatever the weights are",
    "C": "the two have opposite values: one alone moves the output to one side, the other alone to the other side, "
         "and so the single effects cancel; both lowered, they still balance",
    "D": "the two have lower values than the rest of the row and keep the output low; one lowered, the other takes "
         "over and keeps it low. Both lowered raise the output by more than the single rises: the effects are negative",
}


@exercise
def predicted_signs(signs) -> None:
    """Exercise 03.1: "+", "0" or "-" for each row of ROWS: the joint effect is above, equal to or below the sum.

    >>> predicted_signs(None)
    Your turn: write a sign for each row: {"A": "+", ...}.
    """
    if unwritten(signs, 'write a sign for each row: {"A": "+", ...}.'):
        return
    assert isinstance(signs, dict) and signs.keys() == ROWS.keys() and set(signs.values()) <= {"+", "0", "-"}, (
        'Give a dictionary with one of "+", "0", "-" for each of the rows A, B, C and D.')
    for name, (scores, values, right) in ROWS.items():
        if signs[name] == right:
            continue
        first, second, both, _ = row_effects(torch.tensor(scores).double(), torch.tensor(values).double()).tolist()
        raise AssertionError(f"Row {name}: {first:+.3f} and {second:+.3f} alone, {both:+.3f} together, "
                             f"{both - first - second:+.3f} more than the sum: {WHY[name]}.")
    print("Correct: A repairs itself; in B nothing can matter; in C the two cancel; in D they hide a rise, not a fall.")


def _repair(model) -> tuple:
    """Six prompts of different lengths, and the kit's measurement."""
    task = ioi(model, n=6, seed=3)
    return task, head_repair(model, task)


def _answers(task) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of the right and of the wrong answer, [n] each."""
    right, wrong = (torch.tensor([ids[0] for ids in answers]) for answers in (task.good, task.bad))
    return right, wrong


def _check_shape(result, n: int) -> None:
    """Raise AssertionError unless the result is a tensor [n]."""
    assert isinstance(result, torch.Tensor) and result.shape == (n,), (
        f"Return one number per example: shape [{n}] here, not {list(torch.as_tensor(result).shape)}.")


@exercise
def direct_effect(answer, model) -> None:
    """Exercise 03.2: `answer(model, task, right, wrong, layer, head)` is the direct effect of ablating a head, [n].

    >>> direct_effect(lambda *given: None, model)
    Your turn: return one effect per example: shape [n].
    """
    task, repair = _repair(model)
    right, wrong = _answers(task)
    for layer, head in ((4, 2), (2, 3)):
        result = answer(model, task, right, wrong, layer, head)
        if unwritten(result, "return one effect per example: shape [n]."):
            return
        _check_shape(result, len(task))
        direct, live, total, _ = repair.effects[:, repair.heads.index(f"a{layer}.h{head}")].T
        change, layer_change, x, weight, direction = _pieces(model, task, layer, head)
        scale = (x.pow(2).mean(-1, keepdim=True) + architecture_of(model).norms[-1].eps).sqrt()
        result = result.detach()
        recognise(result, [
            (-direct, "The signs are reversed: take clean - corrupt, so that a positive effect means that ablating "
                      "hurts."),
            (live, "This recomputes the norm without the head, so its denominator compensates. The direct effect "
                   "keeps the clean run's denominator."),
            (total, "This is the total effect: the model ran on, and later parts compensated."),
            ((layer_change / scale * weight * direction).sum(-1),
             "This is the whole attention layer. Take the columns of one head: head * width to (head + 1) * width."),
            ((change / scale * direction).sum(-1), "The norm's weight is missing: it multiplies each feature after the "
                                                   "division."),
            ((change * weight * direction).sum(-1), "The final norm's denominator is missing: divide by the root mean "
                                                    "square of the clean run's final stream."),
            ((change / scale * weight * model.lm_head.weight[right]).sum(-1),
             "This is the right answer's logit alone. The metric is right minus wrong."),
        ])
        assert close(result, direct), (
            f"Not the direct effect of a{layer}.h{head} (its mean is {direct.mean():.3f}, yours {result.mean():.3f}): "
            "(z clean - z corrupt) of this head at each row's task.last, through the head's columns of o_proj, over "
            "the clean stream's root mean square, times the norm's weight, times the answers' difference in lm_head.")
    print("Correct: equal to gimkit.selfrepair.head_repair, which reads the same for every head at once.")


def _pieces(model, task, layer: int, head: int) -> tuple:
    """The head's and its layer's change of the stream, the clean final stream, norm weight, and answer direction."""
    right, wrong = _answers(task)
    n, rows, width = len(task), torch.arange(2 * len(task)), architecture_of(model).head_dim
    projection = model.model.layers[layer].self_attn.o_proj
    with torch.no_grad(), model.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False):
        z = projection.input[rows, task.last.repeat(2)].save()
        x = model.model.norm.input[rows[:n], task.last].save()
    change, own = z[:n] - z[n:], slice(head * width, (head + 1) * width)
    weight, unembed = projection.weight.detach(), model.lm_head.weight.detach()
    return change[:, own] @ weight[:, own].T, change @ weight.T, x, model.model.norm.weight.detach(), (
        unembed[right] - unembed[wrong])


@exercise
def no_compensation(answer, model) -> None:
    """Exercise 03.3: `answer(model, task, right, wrong, layer, head)` is the effect, [n], while later parts are held.

    >>> no_compensation(lambda *given: None, model)
    Your turn: return one effect per example: shape [n].
    """
    task, repair = _repair(model)
    right, wrong = _answers(task)
    for layer, head in ((2, 3), (3, 0)):
        result = answer(model, task, right, wrong, layer, head)
        if unwritten(result, "return one effect per example: shape [n]."):
            return
        _check_shape(result, len(task))
        direct, live, total, _ = repair.effects[:, repair.heads.index(f"a{layer}.h{head}")].T
        result = result.detach()
        assert not bool((result.abs() < 1e-6).all()), (
            "Every effect is zero: the ablated head got its clean output back, too. Hold later layers' heads only.")
        recognise(result, [
            (-live, "The signs are reversed: what the metric was, minus what it becomes."),
            (total, "This is the total effect: nothing was held. Inside the trace, assign the later parts' clean "
                    "output to the ablated rows: block.mlp.output = ..."),
            (direct, "This freezes the final norm as well. Hold heads and MLPs only; the final norm stays live."),
            *_half_held(model, task, layer, head),
        ])
        assert close(result, live), (
            f"For a{layer}.h{head} the mean should be {live.mean():.3f}, yours is {result.mean():.3f}: the ablated "
            "rows get the corrupt z of this head, and the clean output of its layer's MLP and of every head and MLP of "
            "later layers.")
    print("Correct: with all parts held, only the final norm can compensate: this is direct_live of head_repair.")


class _Held(NamedTuple):
    """Which parts keep their clean output: later heads, later MLPs, the MLP of the head's own layer."""

    heads: bool
    mlps: bool
    own_mlp: bool


def _half_held(model, task, layer: int, head: int) -> list:
    """The results of holding too little, each with its lesson."""
    lessons = {
        _Held(True, False, True): "Only heads are held. MLPs compensate too: give them their clean outputs.",
        _Held(False, True, True): "Only MLPs are held. Later heads compensate too: give them their clean outputs.",
        _Held(True, True, False): "The MLP of the head's own layer is forgotten: it runs after the attention and reads "
                                 "it.",
    }
    return [(_effect(model, task, layer, head, held), lesson) for held, lesson in lessons.items()]


def _effect(model, task, layer: int, head: int, held: _Held) -> torch.Tensor:
    """The effect of an ablated head, [n], while some later parts are held."""
    right, wrong = _answers(task)
    n, width = len(task), architecture_of(model).head_dim
    rows, own = torch.arange(n), slice(head * width, (head + 1) * width)
    blocks = list(enumerate(model.model.layers))
    with torch.no_grad(), model.trace(input_ids=torch.cat([task.clean, task.corrupt, task.clean]), use_cache=False):
        for i, block in blocks:
            z = block.self_attn.o_proj.input.clone()  # rows: n clean, n corrupt, n ablated
            if i == layer:
                z[2 * n:, :, own] = z[n:2 * n, :, own]
            elif i > layer and held.heads:
                z[2 * n:] = z[:n]
            block.self_attn.o_proj.input = z
            if held.mlps and (i > layer or i == layer and held.own_mlp):
                m = block.mlp.output.clone()
                m[2 * n:] = m[:n]
                block.mlp.output = m
        logits = model.output.logits.unflatten(0, (3, n))[:, rows, task.last]
        difference = (logits[:, rows, right] - logits[:, rows, wrong]).save()
    return difference[0] - difference[2]
