"""What token attribution works on: a prompt's ids, the answers to explain, and the baseline token."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError, check_answers, check_ids, check_length, check_whole
from gimkit.model.architecture import limits
from gimkit.model.tokenizer import PromptLike, answer_ids, baseline_token, encode, is_text, one_token

Answer = str | int | Sequence[int] | torch.Tensor  # text, id, ids
Target = Answer | tuple[Answer, Answer] | Callable[[torch.Tensor], torch.Tensor] | None


class Prompt(NamedTuple):
    """A checked prompt with the answers to explain.

    Attributes:
        ids: token ids [seq].
        baseline: the id of the token that replaces others.
        answers: empty, for the top prediction; one id, or right and wrong; one or two lists of ids, for answers of
            several tokens; or a function of the logits.
        free: [seq], True where the baseline token may replace a token.
    """

    ids: torch.Tensor
    baseline: int
    answers: list
    free: torch.Tensor

    @property
    def metric(self) -> str:
        """What is explained: "logit" (of a token, or a difference of two), "log-probability" or "function"."""
        if not self.answers or isinstance(self.answers[0], int):
            return "logit"
        return "log-probability" if isinstance(self.answers[0], list) else "function"

    @property
    def forced(self) -> torch.Tensor:
        """The tokens of an answer that the model reads after the prompt: all but its last one."""
        several = len(self.answers) == 1 and self.metric == "log-probability"
        return torch.tensor(self.answers[0][:-1] if several else [], dtype=torch.long)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Variants of the prompt [rows, seq] with the forced tokens after them."""
        return torch.cat([ids, self.forced.expand(len(ids), -1)], 1)


def read_prompt(model: Envoy, prompt: PromptLike, target: Target = None, baseline: str | int | None = None,
                free: Iterable[int] | None = None, glue: str | None = None) -> Prompt:
    """Check and encode the prompt, target and baseline of `gimkit.attribute` and similar functions.

    >>> read_prompt(model, "Mary drove to the farm with John. John lent a map to", ("Mary", "John")).answers
    [195, 178]
    >>> read_prompt(model, "Mary drove to the farm with John. John lent a map to", "Mary and John").metric
    'log-probability'

    Args:
        model, prompt, target, baseline, free, glue: as in `gimkit.attribute`.

    Raises:
        GimkitError: an empty prompt; one longer than the model's context; a target that is not an answer, a pair of
            answers or a function; positions outside the prompt; ids that the model does not know.
    """
    tokenizer, (vocabulary, context) = getattr(model, "tokenizer", None), limits(model)
    ids = prompt_ids(model, prompt)
    neutral = baseline_token(tokenizer) if baseline is None else one_token(tokenizer, baseline)
    check_ids(neutral, vocabulary, "the baseline")
    if callable(target):
        answers = [_checked_function(target, vocabulary)]
    else:
        words = target if isinstance(target, tuple | list) else [] if target is None else [target]
        if len(words) > 2:
            raise GimkitError(f"target is one answer, or a pair (right, wrong), not {len(words)} answers")
        answers = [check_ids(_answer(tokenizer, prompt if is_text(prompt) else ids, word, glue),
                             vocabulary, "the target").tolist() for word in words]
        if len(answers) == 2:
            right, wrong = ([answer[0] if len(answer) == 1 else tuple(answer)] for answer in answers)
            check_answers(right, wrong, "the target")
        longest = max(map(len, answers), default=1)
        check_length(len(ids) + longest - 1, context, "the prompt with the answer")
        answers = [answer for answer, in answers] if longest == 1 else answers
    return Prompt(ids, neutral, answers, free_mask(len(ids), range(len(ids)) if free is None else free))


def prompt_ids(model: Envoy, prompt: PromptLike, what: str = "the prompt") -> torch.Tensor:
    """Token ids [seq] of a prompt, as `gimkit.model.tokenizer.encode`; the model knows them and its context holds them.

    >>> prompt_ids(model, "Mary went home").shape
    torch.Size([4])
    """
    vocabulary, context = limits(model)
    ids = check_ids(encode(getattr(model, "tokenizer", None), prompt), vocabulary, what)
    check_length(len(ids), context, what)
    return ids


def _answer(tokenizer: Any, prompt: PromptLike, word: Answer, glue: str | None) -> list[int]:
    """The ids of an answer: a text that follows the prompt, an id, or several ids in a list, array or tensor."""
    if isinstance(word, str):
        if tokenizer is None:
            raise GimkitError("the model has no tokenizer, so give token ids instead of texts")
        return answer_ids(tokenizer, prompt, word, glue)
    if hasattr(word, "__len__") and getattr(word, "ndim", 1) == 1:
        ids = check_ids(word, what="the target").tolist()
        if not ids:
            raise GimkitError("an answer is empty; give at least one token")
        return ids
    return [check_whole("an answer is a text, an id, or a list of ids, which", word, 0)]


def _checked_function(target: Callable, vocabulary: int) -> Callable:
    """A function target; refused when on logits of zeros [vocabulary] it fails or returns no differentiable scalar."""
    logits = torch.zeros(vocabulary, requires_grad=True)
    try:
        with torch.enable_grad():
            value = target(logits)
    except Exception as error:
        raise GimkitError(f"target(logits) fails on logits of shape [{vocabulary}]: {error}") from error
    if not isinstance(value, torch.Tensor) or value.dim() or not value.requires_grad:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise GimkitError("target(logits) must return a tensor without dimensions that has a gradient to the logits "
                          f"[{vocabulary}], not {found}")
    return target


def check_metric(prompt: Prompt, function: str, *metrics: str) -> None:
    """Refuse a target whose metric a function does not cover. metrics: the values of `Prompt.metric` that it covers."""
    if prompt.metric not in metrics:
        kind = {"function": "a function of the logits", "log-probability": "an answer of several tokens"}[prompt.metric]
        raise GimkitError(f"{function} does not explain {kind}; give a single token, or use gimkit.attribute")


def right_minus_wrong(prompt: Prompt,
                      score: Callable[[Prompt], tuple[torch.Tensor, list]]) -> tuple[torch.Tensor, list]:
    """The tensor score(prompt) and the answers' ids.

    In a pair with an answer of several tokens each answer follows the prompt in a row of its own; the result is the
    right answer's score minus the wrong one's.
    """
    if prompt.metric != "log-probability" or len(prompt.answers) == 1:
        return score(prompt)
    right, wrong = (score(prompt._replace(answers=[answer]))[0] for answer in prompt.answers)
    return right - wrong, prompt.answers


def free_mask(length: int, positions: Iterable[int]) -> torch.Tensor:
    """Positions as [length] booleans.

    >>> free_mask(4, [1, 2])
    tensor([False,  True,  True, False])

    Raises:
        GimkitError: no positions, or one outside the prompt.
    """
    positions = [check_whole("a position in free", position, 0, length - 1) for position in positions]
    if not positions:
        raise GimkitError(f"free is empty; give positions from 0 to {length - 1} of this prompt")
    mask = torch.zeros(length, dtype=torch.bool)
    mask[positions] = True
    return mask


def inner_positions(length: int) -> range:
    """All positions but the first and the last.

    >>> inner_positions(5)
    range(1, 4)

    In GIM's evaluation these two are never replaced: the start token, and the one where the model predicts the answer.

    Raises:
        GimkitError: a prompt of one or two tokens.
    """
    if length < 3:
        raise GimkitError(f"this prompt has {length} token{'s' * (length > 1)}: the first and the last always stay, so "
                          "none is left to replace; use a prompt of at least 3 tokens")
    return range(1, length - 1)
