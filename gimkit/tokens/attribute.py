"""Token attribution: which tokens of a prompt speak for an answer."""

import html
from dataclasses import dataclass

import pandas
import torch

from gimkit.errors import GimkitError, check_whole, require_finite
from gimkit.interventions.token_scores import (
    integrated_token_scores,
    pattern_token_scores,
    rescaled_token_scores,
    token_scores,
)
from gimkit.jvp.modes import check_backend, in_either_mode
from gimkit.jvp.scores import forward_token_scores
from gimkit.model.apply import apply, check_unedited
from gimkit.model.architecture import architecture_of, unembedding_of
from gimkit.model.prompt import Question, ask, each_answer
from gimkit.model.tokenizer import spell
from gimkit.remote import in_trace
from gimkit.results import Result
from gimkit.rules import RULES, Rules
from gimkit.tokens.perturbation import METHODS as PERTURBING
from gimkit.tokens.perturbation import perturbed

METHODS = (*RULES, "ig", "deeplift", "pattern-difference", *PERTURBING)
NO_FORWARD = ("{} has no forward mode, for it compares two runs inside the backward pass; use 'ig', any rules ('gim', "
              "'gradient', 'relp', ...), or 'occlusion', which needs no gradient")


@dataclass(frozen=True, eq=False)
class TokenScores(Result):
    """One score per token of a prompt; positive means that the token speaks for the target.

    tokens: texts. scores: [seq] in units of the metric. target: the answer's text. method: the method's name.
    metric: what is explained: "logit", of a token or the difference of two; "log-probability", of an answer of several
    tokens (in nats); "function", of the logits.
    """

    tokens: tuple[str, ...]
    scores: torch.Tensor
    target: str
    method: str
    metric: str = "logit"

    def frame(self) -> pandas.DataFrame:
        """Tidy table with columns position, token, score, method, metric, target."""
        return pandas.DataFrame({"position": range(len(self.tokens)), "token": self.tokens,
                                 "score": self.scores.tolist(), "method": self.method, "metric": self.metric,
                                 "target": self.target})

    def plot(self, ax=None):
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
        """The target, and its metric where it is not a logit."""
        return f"{self.target!r}" + (f" ({self.metric})" if self.metric != "logit" else "")

    def _repr_html_(self) -> str:
        """The prompt with each token's background by its score: blue for the target, orange against; escaped."""
        most = max(float(self.scores.abs().max()), 1e-12)
        spans = []
        for token, score in zip(self.tokens, self.scores.tolist()):
            colour = "31, 119, 180" if score > 0 else "222, 143, 5"
            style = f"background: rgba({colour}, {abs(score) / most * 0.8:.2f}); padding: 2px 3px; border-radius: 3px"
            spans.append(f'<span title="{score:+.3f}" style="{style}">{html.escape(token)}</span>')
        return (f'<div style="font-family: monospace; line-height: 2"><b>{html.escape(self.method)}</b> for '
                f"{html.escape(self._explained)}: {' '.join(spans)}</div>")


def attribute(model, prompt, target=None, *, method: str | Rules = "gim", baseline=None, steps: int = 20, free=None,
              glue: str | None = None, seed: int = 0, backend: str = "auto",
              remote: bool | str = False) -> TokenScores:
    """Score every token of a prompt by how much it speaks for a target token.

    >>> scores = gimkit.attribute(model, "Mary drove to the farm with John. John lent a map to", target="Mary")
    >>> scores.scores.shape                                      # the start token, 12 words and a full stop
    torch.Size([14])

    model: an unedited nnsight model.
    prompt: a text; chat messages [{"role": ..., "content": ...}], which go through the tokenizer's chat template; or
        token ids [seq] in a list, array, tensor or BatchEncoding. One start token comes first and no end token last.
    target: an answer's text, its id, or (a tensor) its ids; a pair (right, wrong) of answers; a function of the logits;
        None, the model's own top prediction. What is explained, and stands in the result's `metric`:
        "logit": of an answer of one token, the last position's logit; of a pair of such, their difference.
        "log-probability": of an answer of several tokens, the sum of its tokens' log-probabilities, each given the
            prompt and the tokens before it (teacher forcing), in nats; of a pair with such an answer, the difference of
            both. The answer's own tokens stay in every variant and get no score.
        "function": target(logits) of the last position's logits [vocab] (at least float32), a tensor without
            dimensions, such as `lambda logits: logits[[5, 9]].sum()`. For a server it travels as source text, so it
            may use torch and what it closes over, and nothing else.
    glue: what stands between the prompt and an answer given as a text. None decides: nothing where the answer begins
        with a space or line break of its own, and after a prompt that ends in a line break, a special token, a chat
        marker such as [/INST] or a space that is a token; else a space. A target that is only white space is that
        token. `glue=""` takes both as they are.
    method: any rules ("gim", "gradient", "attnlrp", "relp", ... or a `gimkit.Rules`) give (embedding - baseline
        embedding) times the gradient under those rules, from one forward and one backward pass; "gradient" is
        gradient x input. Others:
        "ig": integrated gradients from the baseline prompt, `steps` midpoints, one batch.
        "deeplift": DeepLIFT's rescale rule at the MLPs' activations, whose slope is the finite difference to the
            baseline prompt; norms, products and the attention softmax, for which it has no rule, keep their gradient.
            (captum's DeepLift finds no activation that it knows in GELU and SiLU models, so there it is the gradient.)
        "pattern-difference": the gradient to attention scores is (s - s') times the gradient to the pattern s, where
            s' is the baseline prompt's pattern; all else keeps its gradient. (GIM's evaluation calls this AtP*; the
            method of arXiv 2403.00745 repairs queries and keys, which are no tokens: `gimkit.score_nodes` has it.)
        "occlusion": by how much the logit falls when this token alone becomes the baseline token, one batch.
        "lime", "kernelshap": captum's linear models of the logit on 100, and on 3 seq, random variants of the prompt.
            LIME weighs variants by the share of tokens kept (captum's own default compares token ids as numbers).
        "random": normal noise, a control.
    baseline: the neutral token's text or id. By default the tokenizer's mask token, else a single space (as GIM's
        evaluation), else the padding token.
    steps: midpoints of "ig"; its scores sum to the change of the target's logit as steps grow.
    free: positions that the baseline may replace; the others stay in every variant and score 0. None: all.
    seed: of "lime", "kernelshap" and "random".
    backend: "reverse" is a backward pass; "forward" pushes each token's change from the baseline to the logits as a row
        of its own, without autograd: the same numbers by a forward pass of n + 2 rows for n tokens ("ig": n + 1 for
        each step). It knows any rules and "ig", and the architectures whose edges are covered; it recomputes the
        prompt's own norms, attention and MLPs from what it reads, and refuses where they differ. "auto" is "reverse",
        and "forward", with a warning, where a server refuses gradients. Methods without gradients ignore it.
    remote: True runs on the configured server (NDIF, or NDIF_HOST), "http://..." on the server at that address; "local"
        packs and unpacks the request as for a server and runs it here.
    Warns of words in the prompt that the tokenizer does not know.
    Raises GimkitError for an empty prompt or one longer than the context, a target that is no answer (unknown to the
    tokenizer, or right and wrong the same), ids that the model does not know, an unknown method, an edited model, NaN.
    Source: arXiv 2505.17630 (token attribution with (E(x) - E(b)) . gradient, sample counts); IG: arXiv 1703.01365;
    DeepLIFT: arXiv 1704.02685; LIME: arXiv 1602.04938; KernelSHAP: arXiv 1705.07874.
    """
    if not isinstance(method, Rules) and method not in METHODS:
        raise GimkitError(f"unknown method {method!r}; use a gimkit.Rules, or one of {', '.join(METHODS)}")
    steps, seed = check_whole("steps", steps), check_whole("seed", seed, 0)
    check_backend(backend)
    asked = ask(model, prompt, target, baseline, free, glue)
    if method in PERTURBING:
        check_unedited(model)
        scores, answers = perturbed(model, asked, method, seed, remote)
    else:
        forward = NO_FORWARD.format(method)
        if isinstance(method, Rules) or method == "ig" or method in RULES:
            def forward():
                return each_answer(asked, lambda part: forward_token_scores(model, part, method, steps, remote))
        scores, answers = in_either_mode(
            model, backend, lambda: each_answer(asked, lambda part: _backward(model, part, method, steps, remote)),
            forward, remote)
    require_finite(scores)
    return label_scores(model, asked, scores, answers, method if isinstance(method, str) else "own rules")


def label_scores(model, asked: Question, scores: torch.Tensor, answers: list, method: str) -> TokenScores:
    """Scores [seq] with the texts of their tokens and answers. answers: the ids that came back with the scores."""
    tokenizer = getattr(model, "tokenizer", None)
    target = " - ".join(spell(tokenizer, *answer) if isinstance(answer, list) else spell(tokenizer, answer)
                        for answer in answers)
    if asked.metric == "function":
        target = getattr(asked.answers[0], "__name__", type(asked.answers[0]).__name__)
    return TokenScores(tokens_of(model, asked.ids), scores, target, method, asked.metric)


def tokens_of(model, ids: torch.Tensor) -> tuple[str, ...]:
    """The texts of a prompt's tokens."""
    return tuple(spell(getattr(model, "tokenizer", None), i) for i in ids.tolist())


def _backward(model, asked: Question, method: str | Rules, steps: int, remote: bool):
    """Scores [seq] from one backward pass, and the answers' ids."""
    edited = apply(model, RULES["gradient"] if method in ("ig", "deeplift", "pattern-difference") else method)
    parts = architecture_of(model)
    neutral, answers, free = asked.neutral, asked.answers, asked.free
    rows = asked.ids[None]
    if method == "ig":
        rows = rows.repeat(steps, 1)
    if method in ("deeplift", "pattern-difference"):
        rows = torch.stack([asked.ids, torch.where(free, neutral, asked.ids)])
    rows = asked.rows(rows)
    free = torch.nn.functional.pad(free, (0, len(asked.forced)))
    if method == "deeplift":
        missing = next((block.mlp for block in parts.blocks if block.activation is None), None)
        if missing:
            raise GimkitError(f"{parts.name}: {missing} has no activation module of its own, "
                              "so deeplift cannot act there")
    activations, attentions = ([getattr(block, part) for block in parts.blocks] for part in ("activation", "attention"))
    if method == "ig":
        body, arguments = integrated_token_scores, (neutral, answers, free)
    elif method == "deeplift":
        body, arguments = rescaled_token_scores, (activations, answers)
    elif method == "pattern-difference":
        body, arguments = pattern_token_scores, (attentions, answers)
    else:
        body, arguments = token_scores, (neutral, answers)
    scores, answers = in_trace(edited, rows, body, parts.embedding, unembedding_of(model), *arguments, remote=remote)
    return scores.masked_fill(~free, 0)[:len(asked.ids)], answers
