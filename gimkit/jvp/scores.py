"""Forward mode on the client: tangents as rows of a batch, in chunks, and the scores from them."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from nnsight.intervention.envoy import Envoy

from gimkit.interventions.jvp import task_scores_of, token_scores_of
from gimkit.interventions.metric import Answers
from gimkit.jvp.plan import plan_of
from gimkit.model.architecture import projections
from gimkit.model.prompt import Prompt
from gimkit.remote import in_session
from gimkit.rules import PLAIN, Rules, rules_of

NUMBERS = 2**26  # that the rows of one forward pass may hold at once at its widest place
LARGE = 2**29  # bytes moved on the server above which a warning is worthwhile


def forward_token_scores(model: Envoy, prompt: Prompt, method: str | Rules, steps: int,
                         remote: bool | str) -> tuple[torch.Tensor, list]:
    """Scores [seq] of `gimkit.attribute` without a backward pass, and the answers' ids.

    Each free token's change from the baseline embedding is pushed to the logits as a row of its own. So n tokens cost
    a forward pass of n + 2 rows ("ig": n + 1 for each step, and one).
    """
    rules = PLAIN if method == "ig" else rules_of(method)
    plan, (_, baseline, answers, free) = plan_of(model, rules), prompt
    row = prompt.rows(prompt.ids[None])[0]
    seq, free = len(row), torch.nn.functional.pad(free, (0, len(prompt.forced)))
    positions = free.nonzero()[:, 0].tolist()
    left = [1 - (k + 0.5) / steps for k in range(steps)] if method == "ig" else [0.0]
    most = rows_at_once(plan, seq)
    copies = max(1, most // len(positions))
    # The point nearest to the prompt comes first, because the top prediction is read there.
    chunks = [(left[max(0, end - copies):end], positions[start:start + most])
              for end in range(len(left), 0, -copies) for start in range(0, len(positions), most)]
    _warn_transfer(model, plan, [(len(some) * (1 + len(chosen)) + 2, seq) for some, chosen in chunks], remote)
    scores, answers = in_session(model, token_scores_of, plan, rules._asdict(), row, baseline, chunks, free,
                                 answers, remote=remote, gradients=False)
    return scores[:len(prompt.ids)] / len(left), answers


def forward_task_scores(model: Envoy, task: Any, answers: Answers, rules: Rules,
                        chunks: Callable[[int, int], Iterator[tuple]], batch_size: int,
                        remote: bool | str) -> torch.Tensor:
    """Scores [n, columns] of a task's n pairs, by tangents that start inside the model.

    Pairs of the same length go together without padding, as many as the rows allow.

    Args:
        task: a `gimkit.tasks.Task` of n pairs.
        answers: as `gimkit.tasks.task.answers_of` returns them.
        rules: how tangents pass each module.
        chunks: a function of the most rows at once and the extra rows among them. It gives (starts, rows, columns):
            `starts` as `gimkit.jvp.rows.starts_of` returns; tangent rows, and the columns of the result they fill.
    """
    plan = plan_of(model, rules)
    lengths = (task.last + 1).tolist()
    jobs, cells, moved = [], [], []
    for length in sorted(set(lengths)):
        most, same = rows_at_once(plan, length), [i for i, other in enumerate(lengths) if other == length]
        for starts, rows, columns in chunks(most, _extra_rows(plan)):
            together = max(1, min(batch_size, most // starts["rows"]))
            for pairs in (same[i:i + together] for i in range(0, len(same), together)):
                jobs.append((pairs, length, starts))
                cells.append((torch.tensor(pairs)[:, None], columns, rows))
                moved.append((2 + len(pairs) * (2 + starts["rows"]), length))
    _warn_transfer(model, plan, moved, remote)
    found = torch.zeros(len(task), 1 + max(max(columns) for _, columns, _ in cells), dtype=torch.float64)
    values = in_session(model, task_scores_of, plan, rules._asdict(), task.clean, task.corrupt, answers, jobs,
                        remote=remote, gradients=False)
    for (pairs, columns, rows), value in zip(cells, values):
        found[pairs, columns] = value[:, rows].double()
    return found.to(value.dtype)


def _extra_rows(plan: dict) -> int:
    """Further rows, for the corrupt outputs of heads that a norm follows."""
    return plan["blocks"][0]["heads"] if any(block["after_attention"] for block in plan["blocks"]) else 0


def rows_at_once(plan: dict, seq: int) -> int:
    """How many tangents a forward pass takes: attention maps, MLP activations and logits of each fit into NUMBERS."""
    block = plan["blocks"][0]
    per_row = 4 * block["heads"] * seq * seq + 16 * seq * plan["width"] + 2 * plan["vocabulary"]
    return max(1, min(256, NUMBERS // per_row))


def _warn_transfer(model: Envoy, plan: dict, jobs: list[tuple[int, int]], remote: bool | str) -> None:
    """Warn before a large remote job how much a sandbox would move. jobs: (rows, tokens) of each forward pass."""
    size = getattr(getattr(model._module.config, "dtype", None), "itemsize", 4)
    moved = 2 * size * sum(rows * (seq * _numbers_per_token(model, plan) + plan["vocabulary"]) for rows, seq in jobs)
    if remote and moved > LARGE:
        rows = sum(rows for rows, _ in jobs)
        warnings.warn(f"forward mode: {rows} rows in {len(jobs)} forward passes; about {moved / 2**30:.1f} GiB will "
                      "move between the model and its sandbox, on the server (not over the network)", stacklevel=5)


def _numbers_per_token(model: Envoy, plan: dict) -> int:
    """Numbers that are read for one token of one row."""
    root, width = model._module, plan["width"]

    def out(path: str) -> int:
        module = root.get_submodule(path)
        return getattr(module, "nf", None) or module.out_features

    total = 4 * width  # the embedding, the last norm's input and output, what is unembedded
    for block in plan["blocks"]:
        heads = block["heads"] * block["head_dim"]
        around = ("before_attention", "after_attention", "before_mlp", "after_mlp")
        total += 2 * width * sum(block[key] is not None for key in around)
        total += sum(map(out, dict.fromkeys(block["projections"]))) + heads * (2 if block["rotary"] else 1)
        widest = max(out(path) for path in projections(root.get_submodule(block["mlp"]), block["mlp"]))
        total += int(widest * (2 if block["gate"] is None else 1.5 if block["up"] is None else 3))
    return total
