"""Token attribution: which tokens of a prompt speak for an answer."""

import html
from dataclasses import dataclass

import pandas
import torch

from gimkit.anatomy import dissect
from gimkit.edits import apply
from gimkit.errors import GimkitError, require_finite
from gimkit.remote import where
from gimkit.rules import RULES, Rules
from gimkit.traced import integrated_token_scores, token_scores
from gimkit.vocabulary import answer_id, encode, one_token, spell

METHODS = (*RULES, "ig")


@dataclass(frozen=True)
class TokenScores:
    """One score per token of a prompt; positive means that the token speaks for the target.

    tokens: texts. scores: [seq] in logits. target: the answer's text. method: the method's name.
    """

    tokens: tuple[str, ...]
    scores: torch.Tensor
    target: str
    method: str

    def frame(self) -> pandas.DataFrame:
        """Tidy table with columns position, token, score, method, target."""
        return pandas.DataFrame({"position": range(len(self.tokens)), "token": self.tokens,
                                 "score": self.scores.tolist(), "method": self.method, "target": self.target})

    def plot(self, ax=None):
        """Draw one bar per token; returns the matplotlib axes."""
        from gimkit.plots import token_bars

        return token_bars(self, ax=ax)

    def __str__(self) -> str:
        """The method and target, then a line per token."""
        wide = max(len(token) for token in self.tokens)
        lines = [f"{token:>{wide}} {score:+7.2f}" for token, score in zip(self.tokens, self.scores.tolist())]
        return "\n".join([f"{self.method} for {self.target!r}", *lines])

    def _repr_html_(self) -> str:
        """The prompt with each token's background by its score: blue for the target, orange against; escaped."""
        most = max(float(self.scores.abs().max()), 1e-12)
        spans = []
        for token, score in zip(self.tokens, self.scores.tolist()):
            colour = "31, 119, 180" if score > 0 else "222, 143, 5"
            style = f"background: rgba({colour}, {abs(score) / most * 0.8:.2f}); padding: 2px 3px; border-radius: 3px"
            spans.append(f'<span title="{score:+.3f}" style="{style}">{html.escape(token)}</span>')
        return (f'<div style="font-family: monospace; line-height: 2"><b>{html.escape(self.method)}</b> for '
                f"{html.escape(repr(self.target))}: {' '.join(spans)}</div>")


def attribute(model, prompt, target=None, *, method: str | Rules = "gim", baseline=None, steps: int = 20,
              remote: bool = False) -> TokenScores:
    """Score every token of a prompt by how much it speaks for a target token.

    >>> scores = gimkit.attribute(model, "Mary drove to the farm with John. John lent a map to", target="Mary")
    >>> scores.scores.shape                                      # the start token, 12 words and a full stop
    torch.Size([14])

    model: an unedited nnsight model. prompt: a text, or token ids [seq] when the model has no tokenizer.
    target: a token's text (as it follows the prompt after a space) or id; or a pair (right, wrong), whose logit
        difference is then explained; None explains the model's own top prediction. Logits are the last position's.
    method: any rules ("gim", "gradient", "relp", ... or a `gimkit.Rules`) give (embedding - baseline embedding) times
        the gradient under those rules, from one forward and one backward pass; "gradient" is gradient x input.
        "ig" is integrated gradients from the baseline prompt, `steps` midpoints, one batch.
    baseline: the neutral token's text or id. By default the tokenizer's mask token, else a single space (as GIM's
        evaluation), else the padding token.
    steps: midpoints of "ig"; its scores sum to the change of the target's logit as steps grow.
    remote: run on NDIF (as `model.trace(remote=...)`).
    Raises GimkitError for an empty prompt, a target that is not one token, an unknown method, an edited model, NaN.
    Source: arXiv 2505.17630 (token attribution with (E(x) - E(b)) . gradient); IG: arXiv 1703.01365.
    """
    if not isinstance(method, Rules) and method not in METHODS:
        raise GimkitError(f"unknown method {method!r}; use a gimkit.Rules, or one of {', '.join(METHODS)}")
    if steps < 1:
        raise GimkitError(f"steps must be at least 1, not {steps}")
    tokenizer = getattr(model, "tokenizer", None)
    ids = encode(tokenizer, prompt)
    neutral = neutral_token(tokenizer) if baseline is None else one_token(tokenizer, baseline)
    words = target if isinstance(target, tuple | list) else (target,)
    answers = [answer_id(tokenizer, prompt, word) if isinstance(word, str) and isinstance(prompt, str)
               else one_token(tokenizer, word) for word in words if word is not None]
    if len(answers) > 2:
        raise GimkitError(f"target is one token, or a pair (right, wrong), not {len(answers)} tokens")
    rules = RULES["gradient"] if method == "ig" else method
    edited, parts = apply(model, rules), dissect(model)
    with edited.trace(input_ids=ids[None].repeat(steps if method == "ig" else 1, 1), use_cache=False, **where(remote)):
        if method == "ig":
            scores, answers = integrated_token_scores(edited, parts.embedding, neutral, answers)
        else:
            scores, answers = token_scores(edited, parts.embedding, neutral, answers)
        scores, answers = scores.cpu().save(), answers.save()
    require_finite(scores)
    words = [spell(tokenizer, i) for i in answers]
    return TokenScores(tuple(spell(tokenizer, i) for i in ids.tolist()), scores,
                       " - ".join(words), method if isinstance(method, str) else "own rules")


def neutral_token(tokenizer) -> int:
    """The id of the token that stands for "nothing here": mask, space or padding, whichever exists first.

    Raises GimkitError when there is no tokenizer, or none of them.
    """
    if tokenizer is None:
        raise GimkitError("the model has no tokenizer, so give baseline= as the neutral token's id")
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    space = tokenizer(" ", add_special_tokens=False)["input_ids"]
    if len(space) == 1:
        return space[0]
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    raise GimkitError("the tokenizer has no mask, space or padding token; give baseline= as a token's text or id")
