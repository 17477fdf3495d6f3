"""Forward mode on the client: rows in chunks, scores out of them."""

import warnings

import torch

from gimkit.interventions.jvp import task_scores_of, token_scores_of
from gimkit.jvp.plan import plan_of
from gimkit.model.architecture import projections
from gimkit.model.prompt import Question
from gimkit.remote import in_session
from gimkit.rules import PLAIN, Rules, rules_of

NUMBERS = 2**26  # that the rows of one forward may hold at once in its widest place
LARGE = 2**29  # bytes to a server and back that are worth a word


def forward_token_scores(model, asked: Question, method: str | Rules, steps: int, remote):
    """Scores [seq] of `gimkit.attribute` without a backward pass, and the answers' ids.

    Each free token's change from the neutral embedding is pushed to the logits as a row of its own, so n tokens cost a
    forward of n + 2 rows (n + 1 for each step of "ig", and one).
    """
    rules = PLAIN if method == "ig" else rules_of(method)
    plan, (_, neutral, answers, free) = plan_of(model, rules), asked
    row = asked.rows(asked.ids[None])[0]
    seq, free = len(row), torch.nn.functional.pad(free, (0, len(asked.forced)))
    positions = free.nonzero()[:, 0].tolist()
    left = [1 - (k + 0.5) / steps for k in range(steps)] if method == "ig" else [0.0]
    most = rows_at_once(plan, seq)
    copies = max(1, most // len(positions))
    # The point nearest to the prompt comes first: it has the top prediction.
    chunks = [(left[max(0, end - copies):end], positions[start:start + most])
              for end in range(len(left), 0, -copies) for start in range(0, len(positions), most)]
    say_transfer(model, plan, [(len(some) * (1 + len(chosen)) + 1, seq) for some, chosen in chunks], remote)
    scores, answers = in_session(model, token_scores_of, plan, rules._asdict(), row, neutral, chunks, free,
                                 answers, remote=remote, gradients=False)
    return scores[:len(asked.ids)] / len(left), answers


def forward_task_scores(model, task, answers, rules: Rules, chunks, wanted: int, batch_size: int, remote):
    """Scores [n, wanted] of a task's pairs by tangents that start inside the model.

    answers: metric, the answers' positions, good and bad ids, as `gimkit.interventions.metric.metric_values` takes
    them. chunks: a function of (the most rows at once, spare ones among them) giving (starts, rows, columns): what
    `gimkit.jvp.rows.starts_of` says, and which of its rows are which columns of the result. Pairs of the same length go
    together, unpadded, as many as the rows allow.
    """
    plan = plan_of(model, rules)
    lengths = (task.last + 1).tolist()
    jobs, cells, moved = [], [], []
    for length in sorted(set(lengths)):
        most, same = rows_at_once(plan, length), [i for i, other in enumerate(lengths) if other == length]
        for starts, rows, columns in chunks(most, spare_rows(plan)):
            together = max(1, min(batch_size, most // starts["rows"]))
            for pairs in (same[i:i + together] for i in range(0, len(same), together)):
                jobs.append((pairs, length, starts))
                cells.append((torch.tensor(pairs)[:, None], columns, rows))
                moved.append((1 + len(pairs) * (2 + starts["rows"]), length))
    say_transfer(model, plan, moved, remote)
    found = torch.zeros(len(task), wanted, dtype=torch.float64)
    values = in_session(model, task_scores_of, plan, rules._asdict(), task.clean, task.corrupt, *answers, jobs,
                        remote=remote, gradients=False)
    for (pairs, columns, rows), value in zip(cells, values):
        found[pairs, columns] = value[:, rows].double()
    return found.to(value.dtype)


def spare_rows(plan: dict) -> int:
    """Rows for the corrupt parts of heads that a norm follows."""
    return plan["blocks"][0]["heads"] if any(block["after_attention"] for block in plan["blocks"]) else 0


def rows_at_once(plan: dict, seq: int) -> int:
    """How many tangents a forward can take: attention maps, an MLP's inside and the logits of each fit into NUMBERS."""
    block = plan["blocks"][0]
    per_row = 4 * block["heads"] * seq * seq + 16 * seq * plan["width"] + 2 * plan["vocabulary"]
    return max(1, min(256, NUMBERS // per_row))


def say_transfer(model, plan: dict, jobs: list[tuple[int, int]], remote) -> None:
    """Warn, before a large remote job of so many (rows, tokens), how much a sandbox would move."""
    size = getattr(getattr(model._module.config, "dtype", None), "itemsize", 4)
    moved = 2 * size * sum(rows * (seq * per_token(model, plan) + plan["vocabulary"]) for rows, seq in jobs)
    if remote and moved > LARGE:
        rows = sum(rows for rows, _ in jobs)
        warnings.warn(f"forward mode: {rows} rows in {len(jobs)} forward passes; about {moved / 2**30:.1f} GiB will "
                      "move between the model and its sandbox, on the server (not over the network)", stacklevel=5)


def per_token(model, plan: dict) -> int:
    """Numbers that are read for one token of one row."""
    root, width = model._module, plan["width"]

    def out(path):
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
