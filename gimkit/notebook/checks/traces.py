"""The checks of traces, on this machine (notebook 00) and on a server (notebook 08)."""

from unittest import mock

import torch
from nnsight.tracing.tracer import _saves

from gimkit.interventions.residual_stream import tensor_of
from gimkit.model.architecture import architecture_of
from gimkit.notebook.checks.answers import close, exercise, recognise, unwritten

IN_THE_SANDBOX = {
    "A": ("yes", "A puts neutral tokens in and reads logits: no gradient, so every key is enough."),
    "B": ("forward", "B is a backward pass, which the sandbox cannot do; but carrying each token's change forward to "
                     "the logits gives the same numbers, and gimkit does that by itself."),
    "C": ("no", "C would be a row of the batch for every edge in forward mode, far too many; it is refused with a "
                "reason. Score nodes, or the edges of a few nodes."),
    "D": ("yes", "D reads activations and replaces them, which is what a sandbox is for."),
    "E": ("yes", "E is one forward pass per head with its output replaced: slow, exact, and no gradient."),
}


@exercise
def read_a_trace(answer, model) -> None:
    """Exercise 00.1: `answer(model, module, prompt)` is the shape of a module's output, [1, tokens, width].

    >>> read_a_trace(lambda *given: None, model)
    Your turn: return the shape of the module's output.
    """
    module = model.get(architecture_of(model).blocks[0].mlp)
    width, vocabulary = model.config.get_text_config().hidden_size, model.config.get_text_config().vocab_size
    for prompt in ("Mary and John went home .", "Mary and John went home . John gave a ring to"):
        shape = answer(model, module, prompt)
        if unwritten(shape, "return the shape of the module's output."):
            return
        assert isinstance(shape, tuple | list), (
            f"Return the shape, {type(shape).__name__} is something else: inside the trace write "
            "output = module.output.save(), and after it return output.shape.")
        tokens = len(model.tokenizer(prompt)["input_ids"])
        assert len(shape) == 3, (
            f"A shape with {len(shape)} axes; expected 3: prompts, tokens, width. One prompt is still a batch of one.")
        assert shape[-1] != vocabulary, "The last axis is the vocabulary: these are the logits. Read module.output."
        assert shape[1] == tokens, (
            f"{shape[1]} positions, but this prompt has {tokens} tokens, the start token included. "
            "Take the shape from the trace of the prompt that is passed in.")
        assert tuple(shape) == (1, tokens, width), f"Expected (1, {tokens}, {width}), not {tuple(shape)}."
    print(f"Correct: (1, tokens, {width}): one prompt, a position per token, {width} numbers at each.")


class _CountingBackend:
    """A backend that counts the numbers that a trace saves."""

    def __init__(self, backend, seen: list):
        self.backend, self.seen = backend, seen

    def __call__(self, tracer):
        self.backend(tracer)
        kept = [value for value in tracer.info.frame.f_locals.values() if id(value) in _saves()]
        self.seen.append(sum(map(_numbers, kept)))


def _numbers(value) -> int:
    """How many numbers a saved value holds."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    return sum(map(_numbers, value)) if isinstance(value, list | tuple) else 1


@exercise
def strengths(answer, model) -> None:
    """Exercise 08.1: `answer(model, prompt, where)` is the norm of each MLP's output at the last token, [layers].

    >>> strengths(lambda *given: None, model)
    Your turn: return one norm per layer: shape [layers].
    """
    prompt, parts = "Mary and John went home . John gave a ring to", architecture_of(model)
    with model.trace(prompt, use_cache=False):
        outputs = [tensor_of(model.get(block.mlp).output)[0] for block in parts.blocks].save()
    seen, real = [], type(model)._remote_backend
    with mock.patch.object(type(model), "_remote_backend", lambda *given: _CountingBackend(real(*given), seen)):
        result = answer(model, prompt, "local")
    if unwritten(result, "return one norm per layer: shape [layers]."):
        return
    result = torch.stack(list(result)) if isinstance(result, list | tuple) else result
    assert isinstance(result, torch.Tensor), f"Return a tensor [layers], not {type(result).__name__}."
    assert seen, "Nothing was sent: give the trace remote=where."
    layers = len(outputs)
    wanted = torch.stack([x[-1].norm() for x in outputs])
    recognise(result.flatten(), [
        (torch.stack([x[0].norm() for x in outputs]), "These are norms at the first token; the last is at -1."),
        (torch.stack([x.norm() for x in outputs]), "These are norms over all tokens together; take the last token's."),
        (torch.stack([x[-1].sum() for x in outputs]), "These are sums; a norm is the root of the sum of squares."),
    ])
    assert result.shape == (layers,), f"Expected [{layers}], a number per layer, not {list(result.shape)}."
    assert close(result, wanted), "These are not the norms of the MLPs' outputs at the last token."
    assert len(seen) == 1, f"{len(seen)} requests: each waits in a queue of its own. One trace can read every layer."
    assert seen[0] <= 2 * layers, (
        f"Right, but {seen[0]} numbers came back where {layers} do. Take the norm inside the trace and save that: with "
        "80 layers of width 8192 and a long prompt the activations would be gigabytes.")
    print(f"Correct: {layers} numbers came back in one request.")


@exercise
def sandbox_calls(answers) -> None:
    """Exercise 08.2: for each of five calls, "yes", "forward" or "no".

    >>> sandbox_calls(None)
    Your turn: predict A to E: "yes", "forward" or "no".
    """
    if unwritten(answers, 'predict A to E: "yes", "forward" or "no".'):
        return
    assert isinstance(answers, dict) and set(answers) == set(IN_THE_SANDBOX), "Give a dict with the keys A to E."
    for call, answer in answers.items():
        assert answer in ("yes", "forward", "no"), f'{call} is {answer!r}; the answers are "yes", "forward" and "no".'
        right, lesson = IN_THE_SANDBOX[call]
        assert answer == right, lesson
    print("Correct: what only reads and replaces runs anywhere; gradients need a trusted key, or forward mode.")
