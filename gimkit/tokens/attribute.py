"""Token attribution: how much each token of a prompt speaks for an answer."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import pandas
import torch
from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError, check_whole, require_finite
from gimkit.interventions.token_scores import (
    integrated_token_scores,
    pattern_token_scores,
    rescaled_token_scores,
    token_scores,
)
from gimkit.jvp.modes import Backend, by_backend, check_backend
from gimkit.jvp.scores import forward_token_scores
from gimkit.model.apply import apply, check_unedited
from gimkit.model.architecture import architecture_of, unembedding_of
from gimkit.model.prompt import Prompt, PromptLike, Target, read_prompt, right_minus_wrong
from gimkit.model.tokenizer import token_text
from gimkit.remote import in_trace
from gimkit.results import Result
from gimkit.rules import PLAIN, RULES, Preset, Rules, name_of, rules_of
from gimkit.tokens.perturbation import METHODS as PERTURBATIONS
from gimkit.tokens.perturbation import Perturbation, perturbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal[Preset, "ig", "deeplift", "pattern-difference", Perturbation]
METHODS: tuple[Method, ...] = get_args(Method)
NO_FORWARD = ("{} has no forward mode: it compares two runs inside the backward pass; use 'ig', any rules ('gim', "
              "'gradient', 'relp', ...), or 'occlusion', which needs no gradient")


@dataclass(frozen=True, eq=False)
class TokenScores(Result):
    """One score per token of a prompt; positive means that the token speaks for the target.

    >>> scores = gimkit.attribute(model, "Mary drove to the farm with John. John lent a map to", target="Mary")
    >>> scores.tokens[:3], scores.scores.shape, scores.metric
    (('<s>', 'Mary', 'drove'), torch.Size([14]), 'logit')

    Attributes:
        tokens: the tokens' texts.
        scores: [seq] in units of the metric.
        target: the answer's text.
        method: the method's name, or "own rules".
        metric: what is explained: "logit" (of a token, or the difference of two), "log-probability" (of an answer of
            several tokens, in nats) or "function" (of the logits).
    """

    tokens: tuple[str, ...]
    scores: torch.Tensor
    target: str
    method: str
    metric: str = "logit"

    def frame(self) -> pandas.DataFrame:
        """A tidy table with the columns position, token, score, method, metric, target."""
        return pandas.DataFrame({"position": range(len(self.tokens)), "token": self.tokens,
                                 "score": self.scores.tolist(), "method": self.method, "metric": self.metric,
                                 "target": self.target})

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw one bar per token; returns the matplotlib axes."""
        from gimkit.plots import token_bars

        return token_bars(self, ax=ax)

    def __str__(self) -> str:
        """The method and target, then a line per token."""
        wide = max(len(token) for token in self.tokens)
        lines = [f"{token:>{wide}} {score:+7.2f}" for token, score in zip(self.tokens, self.scores.tolist())]
        return "\n".join([f"{self.method} for {self._explained}", *lines])

    @property
    def _explained(self) -> str:
        """The target, with its metric unless that is a logit."""
        return f"{self.target!r}" + (f" ({self.metric})" if self.metric != "logit" else "")

    def _repr_html_(self, most: float | None = None) -> str:
        """The prompt, each token's ground coloured by its score, up to `most`: blue for the target, orange against."""
        most = most or max(float(self.scores.abs().max()), 1e-12)
        spans = []
        for token, score in zip(self.tokens, self.scores.tolist()):
            colour = "31, 119, 180" if score > 0 else "222, 143, 5"
            style = f"background: rgba({colour}, {abs(score) / most * 0.8:.2f}); padding: 2px 3px; border-radius: 3px"
            spans.append(f'<span title="{score:+.3f}" style="{style}">{html.escape(token)}</span>')
        return (f'<div style="font-family: monospace; line-height: 2"><b>{html.escape(self.method)}</b> for '
                f"{html.escape(self._explained)}: {' '.join(spans)}</div>")


def attribute(model: Envoy, prompt: PromptLike, target: Target = None, *, method: Method | Rules = "gim",
              baseline: str | int | None = None, steps: int = 20, free: Iterable[int] | None = None,
              glue: str | None = None, seed: int = 0, backend: Backend = "auto",
              remote: bool | str = False) -> TokenScores:
    """Score every token of a prompt by how much it speaks for a target token.

    >>> scores = gimkit.attribute(model, "Mary drove to the farm with John. John lent a map to", target="Mary")
    >>> scores.scores.shape                                      # the start token, 12 words and a full stop
    torch.Size([14])

    Warns of words in the prompt that the tokenizer does not know. Other functions take `backend`, `remote` and `seed`
    as described here, and some also `batch_size`: prompt pairs per forward pass, which does not change the result.

    Args:
        model: an nnsight model without rules (the function applies them itself).
        prompt: a text; chat messages [{"role": ..., "content": ...}], which go through the tokenizer's chat template;
            or token ids [seq] in a list, array, tensor or BatchEncoding. One start token is put first, no end token
            last.
        target: the answer to explain: its text, its id, or (a tensor) its ids; a pair (right, wrong) of answers; a
            function of the logits; None, the model's own top prediction. The result's `metric` names what is scored:
            "logit": for one token, its logit at the last position; for a pair of single tokens, the difference.
            "log-probability": for an answer of several tokens, the sum of its tokens' log-probabilities in nats, each
            given the prompt and the answer's tokens before it (teacher forcing); for a pair with such an answer, the
            difference. The answer's own tokens stay in every variant and get no score.
            "function": target(logits) of the last position's logits [vocab] (at least float32), a tensor without
            dimensions, such as `lambda logits: logits[[5, 9]].sum()`. It travels to a server as source text, so there
            it may use only torch and its own closure.
        method: a `gimkit.Rules`, or one of the names in `gimkit.tokens.METHODS`, which docs/METHODS.md explains and
            compares. Rules give (embedding - baseline embedding) . gradient under these rules, from one forward and
            one backward pass: "gim", "gradient", "freeze", "temperature", "attnlrp", "relp", "transformer-lrp". The
            others: "ig", "deeplift", "pattern-difference", "occlusion", "lime", "kernelshap" (these two need captum
            and scikit-learn) and "random", normal noise as a control.
        baseline: the text or id of the token that replaces others. None: the tokenizer's mask token, else a single
            space (as in GIM's evaluation), else the padding token.
        steps: midpoints of "ig". Its scores sum to the change of the target's logit as steps grow.
        free: positions that the baseline may replace; the others stay in every variant and score 0. None: all.
        glue: the text between the prompt and an answer given as text. None: a space; but nothing where the answer
            begins with a space or line break, or the prompt ends in a line break, a special token, a chat marker such
            as [/INST], or a space that is a token. An answer that is only white space is that token. "" joins both
            as they are.
        seed: of the random numbers of "lime", "kernelshap" and "random".
        backend: "reverse" is a backward pass. "forward" pushes each token's change from the baseline to the logits as
            a row of its own, without autograd: the same numbers from a forward pass of n + 2 rows for n tokens ("ig":
            n + 1 rows for each step). It covers any rules and "ig", on architectures whose edges are covered; it
            recomputes the prompt's own norms, attention and MLPs from what it reads, and raises an error where the
            result differs. "auto" is "reverse"; where a server refuses gradients it is "forward", with a warning.
            Methods without gradients ignore it.
        remote: False runs here. True runs on the configured server (NDIF, or NDIF_HOST); "http://..." on the server at
            that address; "local" packs and unpacks the request as for a server, and runs it here.

    Returns:
        The `TokenScores`, scores [seq] in units of the metric.

    Raises:
        GimkitError: an empty prompt, or one longer than the model's context; a target that the tokenizer does not
            know, or whose right and wrong answers are the same; ids that the model does not know; an unknown method;
            a model with rules; NaN.

    Source:
        arXiv 2505.17630: token attribution as (E(x) - E(b)) . gradient, numbers of samples. IG: arXiv 1703.01365.
        DeepLIFT: arXiv 1704.02685. LIME: arXiv 1602.04938. KernelSHAP: arXiv 1705.07874.
    """
    if not isinstance(method, Rules) and method not in METHODS:
        raise GimkitError(f"unknown method {method!r}; use a gimkit.Rules, or one of {', '.join(METHODS)}")
    steps, seed = check_whole("steps", steps), check_whole("seed", seed, 0)
    check_backend(backend)
    encoded = read_prompt(model, prompt, target, baseline, free, glue)
    if method in PERTURBATIONS:
        check_unedited(model)
        scores, answers = perturbed(model, encoded, method, seed, remote)
    else:
        def reverse() -> tuple[torch.Tensor, list]:
            return right_minus_wrong(encoded, lambda part: _backward(model, part, method, steps, remote))

        def forward() -> tuple[torch.Tensor, list]:
            return right_minus_wrong(encoded, lambda part: forward_token_scores(model, part, method, steps, remote))

        has_forward = isinstance(method, Rules) or method == "ig" or method in RULES
        scores, answers = by_backend(model, backend, reverse, forward if has_forward else NO_FORWARD.format(method),
                                     remote)
    require_finite(scores)
    return label_scores(model, encoded, scores, answers, name_of(method))


def label_scores(model: Envoy, prompt: Prompt, scores: torch.Tensor, answers: list, method: str) -> TokenScores:
    """Scores [seq] with the texts of their tokens and answers. answers: the ids that came back with the scores."""
    tokenizer = getattr(model, "tokenizer", None)
    target = " - ".join(token_text(tokenizer, *answer) if isinstance(answer, list) else token_text(tokenizer, answer)
                        for answer in answers)
    if prompt.metric == "function":
        target = getattr(prompt.answers[0], "__name__", type(prompt.answers[0]).__name__)
    return TokenScores(tokens_of(model, prompt.ids), scores, target, method, prompt.metric)


def tokens_of(model: Envoy, ids: torch.Tensor) -> tuple[str, ...]:
    """The texts of a prompt's tokens."""
    return tuple(token_text(getattr(model, "tokenizer", None), i) for i in ids.tolist())


def _backward(model: Envoy, prompt: Prompt, method: str | Rules, steps: int,
              remote: bool | str) -> tuple[torch.Tensor, list]:
    """Scores [seq] from one backward pass, and the answers' ids."""
    parts = architecture_of(model)
    ids, baseline, answers, free = prompt
    padded = torch.nn.functional.pad(free, (0, len(prompt.forced)))  # forced tokens of the answer are never replaced
    rules = PLAIN if method in ("ig", "deeplift", "pattern-difference") else rules_of(method)
    # Rows of the batch: the prompt; for "ig" one a step; for methods that compare two runs, the baseline prompt too.
    rows, body, arguments = ids[None], token_scores, (baseline, answers)
    if method == "ig":
        rows, body, arguments = rows.repeat(steps, 1), integrated_token_scores, (baseline, answers, padded)
    elif method in ("deeplift", "pattern-difference"):
        rows = torch.stack([ids, torch.where(free, baseline, ids)])
        if method == "deeplift":
            missing = next((block.mlp for block in parts.blocks if block.activation is None), None)
            if missing:
                raise GimkitError(f"{parts.name}: {missing} has no activation module of its own, "
                                  "so deeplift cannot act there")
            body, arguments = rescaled_token_scores, ([block.activation for block in parts.blocks], answers)
        else:
            body, arguments = pattern_token_scores, ([block.attention for block in parts.blocks], answers)
    scores, answers = in_trace(apply(model, rules), prompt.rows(rows), body, parts.embedding, unembedding_of(model),
                               *arguments, remote=remote)
    return scores.masked_fill(~padded, 0)[:len(ids)], answers
