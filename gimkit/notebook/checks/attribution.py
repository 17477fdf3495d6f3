"""The check of attribution patching, in notebook 04."""

import torch

from gimkit.circuits import score_nodes
from gimkit.model.apply import apply
from gimkit.model.architecture import architecture_of
from gimkit.notebook.checks.answers import close, exercise, recognise, unwritten
from gimkit.tasks import ioi


@exercise
def attribution_patching(answer, model) -> None:
    """Exercise 04.1: `answer(model, module, task, right, wrong)` estimates each example's effect of a module, [n].

    >>> attribution_patching(lambda *given: None, model)
    Your turn: return one score per example: shape [n].
    """
    task = ioi(model, n=5, seed=5)
    right, wrong = (torch.tensor([ids[0] for ids in answers]) for answers in (task.good, task.bad))
    path = architecture_of(model).blocks[1].mlp
    for name, edited in (("gradient", model), ("gim", apply(model))):
        result = answer(edited, edited.get(path), task, right, wrong)
        if unwritten(result, "return one score per example: shape [n]."):
            return
        assert isinstance(result, torch.Tensor) and result.shape == (5,), (
            f"Return one number per example: shape [5] here, not {list(torch.as_tensor(result).shape)}. Sum over "
            "positions and width, not over examples.")
        exact = score_nodes(model, task, name)
        wanted = exact.per_example[:, exact.nodes.index("m1")]
        output, gradient = _output_and_gradient(edited, path, task, right, wrong)
        clean, corrupt, slope = output[:5], output[5:], gradient[:5]
        lessons = [
            (-wanted, "The signs are reversed: take clean - corrupt, so that a positive score means that corrupting "
                      "this hurts."),
            ((clean * slope).sum((1, 2)), "This is output times gradient: a distance to zero. The question here is "
                                          "what the corrupt prompt would change: (clean - corrupt) . gradient."),
            (((clean - corrupt) * gradient[5:]).sum((1, 2)),
             "The gradient is that of the corrupt rows. The prediction starts at the clean run: gradient[:n]."),
            (((clean - corrupt) * slope)[torch.arange(5), task.last].sum(-1),
             "Only the last position is counted. Patching replaces the output at every position: sum over all."),
        ]
        recognise(result.detach(), lessons)
        assert close(result.detach(), wanted), (
            f"Not the score under the rules {name}: trace the model and the module that are passed in, take the "
            "gradient of the summed logit differences at the module's output, times (clean - corrupt).")
    print("Correct: the same function gives the gradient's score on the model, and GIM's on its edited copy.")


def _output_and_gradient(model, path: str, task, right, wrong) -> tuple:
    """A module's output on clean rows, then corrupt ones, and the gradient of each row's logit difference at it."""
    rows = torch.arange(2 * len(task))
    with model.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False):
        module = model.get(path)
        output = module.output.detach().requires_grad_(True)
        module.output = output
        logits = model.output.logits[rows, task.last.repeat(2)]
        difference = logits[rows, right.repeat(2)] - logits[rows, wrong.repeat(2)]
        gradient = torch.autograd.grad(difference.sum(), output)[0].save()
        output = output.detach().save()
    return output, gradient
