"""The checks of notebook 00, check your seat."""



from gimkit.model.architecture import architecture_of
from gimkit.notebook.checks.answers import unwritten


def read_a_trace(answer, model) -> None:
    """Exercise 00.1: `answer(model, module, prompt)` is the shape of a module's output, [1, tokens, width]."""
    module = model.get(architecture_of(model).blocks[0].mlp)
    width, vocabulary = model.config.get_text_config().hidden_size, model.config.get_text_config().vocab_size
    for prompt in ("Mary and John went home .", "Mary and John went home . John gave a ring to"):
        shape = answer(model, module, prompt)
        if unwritten(shape, "trace the prompt, save the module's output, return its shape."):
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
