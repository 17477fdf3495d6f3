"""The checks of notebook 03, self-repair."""

import torch

from gimkit.model.architecture import architecture_of
from gimkit.notebook.checks.answers import close, recognise, unwritten
from gimkit.selfrepair import head_repair
from gimkit.tasks import ioi

# Scores and worths of four attention rows, and how the joint effect of the first two compares with their sum.
ROWS = {
    "A": ((6, 6, 0, 0, 0), (10, 10, 0, 0, 0), "+"),
    "B": ((6, 6, 0, 0, 0), (10, 10, 10, 10, 10), "0"),
    "C": ((6, 6, 0, 0, 0), (10, -10, 0, 0, 0), "0"),
    "D": ((4, 4, 2, 2, 2), (3, 3, 9, 9, 9), "-"),
}
WHY = {
    "A": "lower one, and the other takes its weight and brings the same news: each alone costs little",
    "B": "every position is worth 10, so the output is 10 whatever the weights are",
    "C": "the two speak against each other: one alone tips the output to one side, the other alone to the other side, "
         "and so the single effects cancel; both lowered, they still balance",
    "D": "the two are worth less than the rest of the row and keep it down; one lowered, the other takes over and "
         "keeps it down still. Both lowered raise the output by more than the single rises: the effects are negative",
}


def predicted_signs(signs) -> None:
    """Exercise 03.1: for each row of ROWS, "+", "0" or "-": is the joint effect more, as much, or less than the sum?"""
    if unwritten(signs, 'write a sign for each row: {"A": "+", ...}.'):
        return
    assert isinstance(signs, dict) and signs.keys() == ROWS.keys() and set(signs.values()) <= {"+", "0", "-"}, (
        'Give a dictionary with one of "+", "0", "-" for each of the rows A, B, C and D.')
    for name, (scores, worth, right) in ROWS.items():
        if signs[name] == right:
            continue
        first, second, both = row_effects(torch.tensor(scores).double(), torch.tensor(worth).double())
        raise AssertionError(f"Row {name}: {first:+.3f} and {second:+.3f} alone, {both:+.3f} together, "
                             f"{both - first - second:+.3f} more than the sum: {WHY[name]}.")
    print("Correct: A repairs itself; in B nothing can matter; in C the two cancel; in D they hide a rise, not a fall.")


def row_effects(scores, worth) -> list[float]:
    """Falls of a row's output with its first, second, and both scores at the mean of the row."""
    falls = []
    for lowered in ([0], [1], [0, 1]):
        other = scores.clone()
        other[lowered] = scores.mean()
        falls.append(float(scores.softmax(-1) @ worth - other.softmax(-1) @ worth))
    return falls


def _repair(model):
    """Six prompts of different lengths, answer ids, and the kit's measurement."""
    task = ioi(model, n=6, seed=3)
    right, wrong = (torch.tensor([ids[0] for ids in answers]) for answers in (task.good, task.bad))
    return task, right, wrong, head_repair(model, task)


def _shaped(result, n: int) -> None:
    assert isinstance(result, torch.Tensor) and result.shape == (n,), (
        f"Return one number per example: shape [{n}] here, not {list(torch.as_tensor(result).shape)}.")


def direct_effect(answer, model) -> None:
    """Exercise 03.2: `answer(model, task, right, wrong, layer, head)` is the direct effect of ablating a head, [n]."""
    task, right, wrong, repair = _repair(model)
    for layer, head in ((4, 2), (2, 3)):
        result = answer(model, task, right, wrong, layer, head)
        if unwritten(result, "the change of the head's output, through o_proj, the final norm's scale and lm_head."):
            return
        _shaped(result, len(task))
        direct, live, total, _ = repair.effects[:, repair.heads.index(f"a{layer}.h{head}")].T
        change, layer_change, x, weight, direction = _pieces(model, task, right, wrong, layer, head)
        scale = (x.pow(2).mean(-1, keepdim=True) + architecture_of(model).norms[-1].eps).sqrt()
        result = result.detach()
        recognise(result, [
            (-direct, "The signs are reversed: take clean - corrupt, so that a positive effect means that ablating "
                      "hurts."),
            (live, "This recomputes the norm without the head: its denominator answers already. The direct effect "
                   "keeps the clean run's denominator."),
            (total, "This is the total effect: the model ran on, and later parts answered."),
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


def _pieces(model, task, right, wrong, layer: int, head: int) -> tuple:
    """The head's and its layer's change of the stream, the clean final stream, norm weight, and answer direction."""
    n, rows, width = len(task), torch.arange(2 * len(task)), architecture_of(model).head_dim
    projection = model.model.layers[layer].self_attn.o_proj
    with torch.no_grad(), model.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False):
        z = projection.input[rows, task.last.repeat(2)].save()
        x = model.model.norm.input[rows[:n], task.last].save()
    change, mine = z[:n] - z[n:], slice(head * width, (head + 1) * width)
    weight, unembed = projection.weight.detach(), model.lm_head.weight.detach()
    return change[:, mine] @ weight[:, mine].T, change @ weight.T, x, model.model.norm.weight.detach(), (
        unembed[right] - unembed[wrong])


def no_compensation(answer, model) -> None:
    """Exercise 03.3: `answer(model, task, right, wrong, layer, head)`: the effect, [n], while later parts are held."""
    task, right, wrong, repair = _repair(model)
    for layer, head in ((2, 3), (3, 0)):
        result = answer(model, task, right, wrong, layer, head)
        if unwritten(result, "ablate the head, and give every later head and MLP its clean output back."):
            return
        _shaped(result, len(task))
        direct, live, total, _ = repair.effects[:, repair.heads.index(f"a{layer}.h{head}")].T
        result = result.detach()
        assert not bool((result.abs() < 1e-6).all()), (
            "Every effect is zero: the ablated head got its clean output back, too. Hold later layers' heads only.")
        recognise(result, [
            (-live, "The signs are reversed: what the metric was, minus what it becomes."),
            (total, "This is the total effect: nothing was held. Inside the trace, assign the later parts' clean "
                    "output to the ablated rows: block.mlp.output = ..."),
            (direct, "This freezes the final norm as well. Hold heads and MLPs only; the final norm stays live."),
            *_half_held(model, task, right, wrong, layer, head),
        ])
        assert close(result, live), (
            f"For a{layer}.h{head} the mean should be {live.mean():.3f}, yours is {result.mean():.3f}: the ablated "
            "rows get the corrupt z of this head, and the clean output of its layer's MLP and of every head and MLP of "
            "later layers.")
    print("Correct: with everyone held, only the final norm is left to answer: this is direct_live of head_repair.")


def _half_held(model, task, right, wrong, layer: int, head: int) -> list:
    """What comes out when a kind of part, or the layer's own MLP, is forgotten."""
    lessons = {(True, False, True): "Only heads are held. MLPs answer too: give them their clean outputs.",
               (False, True, True): "Only MLPs are held. Later heads answer too: give them their clean outputs.",
               (True, True, False): "The MLP of the head's own layer is forgotten: it runs after the attention and "
                                    "reads it."}
    return [(_held(model, task, right, wrong, layer, head, *held), lesson) for held, lesson in lessons.items()]


def _held(model, task, right, wrong, layer: int, head: int, heads: bool, mlps: bool, own_mlp: bool):
    """The effect of an ablated head, [n], while later heads, later MLPs, or the layer's own MLP are held."""
    n, width = len(task), architecture_of(model).head_dim
    rows, mine = torch.arange(n), slice(head * width, (head + 1) * width)
    blocks = list(enumerate(model.model.layers))
    with torch.no_grad(), model.trace(input_ids=torch.cat([task.clean, task.corrupt, task.clean]), use_cache=False):
        for i, block in blocks:
            z = block.self_attn.o_proj.input.clone()
            if i == layer:
                z[2 * n:, :, mine] = z[n:2 * n, :, mine]
            elif i > layer and heads:
                z[2 * n:] = z[:n]
            block.self_attn.o_proj.input = z
            if mlps and (i > layer or i == layer and own_mlp):
                m = block.mlp.output.clone()
                m[2 * n:] = m[:n]
                block.mlp.output = m
        logits = model.output.logits.unflatten(0, (3, n))[:, rows, task.last]
        difference = (logits[:, rows, right] - logits[:, rows, wrong]).save()
    return difference[0] - difference[2]
