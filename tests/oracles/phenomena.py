"""Does a small trained model show what the notebooks teach? Exact measurements, one function a phenomenon.

Everything is computed forward on a model taken apart (`tests.oracles.apart`): no gradients, no approximation.
Names, metric and normalised effects are those of `tests.oracles.patched`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from gimkit.errors import GimkitError
from tests.oracles.apart import Setting, at, attention_scores, every_part, metric_of, name_of, resume, set_up
from tests.oracles.patched import (
    depth,
    late_dependence,
    layers_taking_part,
    node_effects,
    path_effects,
    strongest,
)

if TYPE_CHECKING:
    from gimkit.tasks import Task

# --- 3. attention self-repair ---------------------------------------------------------------------


def joint_ablation(scores: Tensor, values: Tensor, threshold: float = 1.0) -> pd.DataFrame:
    """Ablate the two attention scores that contribute most, one at a time and together.

    >>> joint_ablation(torch.tensor([[6., 6, 0, 0, 0]]), torch.tensor([[10., 9, 0, 0, 0]]))
       row  i  j        d1        d2     joint  interaction
    0    0  0  1  0.503078 -0.436923  1.102699     0.940006

    scores [R, S]: attention scores, -inf where masked; values [R, S]: what each position is worth, c_k, so
    that a row's output is o = sum_k softmax(scores)_k c_k. Kept are rows with two contributions above
    `threshold` (in units of o). An ablated score becomes the mean of the row's unmasked scores; d1, d2 and
    joint are the losses of o, and interaction is (joint - d1 - d2) / joint, 0 where joint is 0. Source: GIM
    (arXiv 2505.17630), its self-repair analysis, as in its code.
    """
    top = (scores.softmax(-1) * values).topk(2, dim=-1)
    rows = (top.values[:, 1] > threshold).nonzero().squeeze(-1)
    a, c, (i, j) = scores[rows], values[rows], top.indices[rows].T
    mean = a.masked_fill(a.isinf(), torch.nan).nanmean(-1, keepdim=True)
    place = torch.arange(a.shape[-1], device=a.device)
    first, second = place == i[:, None], place == j[:, None]

    def output(ablated: Tensor) -> Tensor:
        return (torch.where(ablated, mean, a).softmax(-1) * c).sum(-1)

    o = output(torch.zeros_like(first))
    d1, d2, joint = (o - output(ablated) for ablated in (first, second, first | second))
    interaction = torch.where(joint == 0, 0, (joint - d1 - d2) / joint)
    columns = {"row": rows, "i": i, "j": j, "d1": d1, "d2": d2, "joint": joint, "interaction": interaction}
    return pd.DataFrame({name: t.numpy() for name, t in columns.items()})


@torch.no_grad()
def attention_self_repair(model: nn.Module, task: Task, threshold: float = 1.0) -> pd.DataFrame:
    """Joint against single ablation of attention scores, for each head and query of the clean prompts.

    >>> attention_self_repair(model._module, task[:2]).columns.tolist()
    ['example', 'layer', 'head', 'query', 'i', 'j', 'd1', 'd2', 'joint', 'interaction']

    A position's worth is c_k = z_q . v_k, with z_q the head's own output at the query, so o = ||z_q||^2; see
    `joint_ablation`. One row for each (example, layer, head, query) with two contributions above `threshold`;
    i and j are the ablated positions. Padding is left out.
    """
    s = set_up(model, task)
    frames = []
    for layer, block in enumerate(s.net.blocks):
        q, k, v = s.clean.qkv[layer]
        scores = attention_scores(q, k, block.scaling)
        values = torch.einsum("nqhd,nkhd->nhqk", s.clean.z[layer], v)
        where = s.mask[:, None, :].expand(scores.shape[:3]).nonzero()
        real = where.unbind(1)
        frame = joint_ablation(scores[real], values[real], threshold)
        example, head, query = where[frame.pop("row").tolist()].T.numpy()
        labels = pd.DataFrame({"example": example, "layer": layer, "head": head, "query": query})
        frames.append(pd.concat([labels, frame], axis=1))
    return pd.concat(frames, ignore_index=True)


def repair_summary(repair: pd.DataFrame) -> dict[str, float]:
    """Five numbers about a frame of `attention_self_repair`.

    >>> repair_summary(attention_self_repair(model._module, task[:2]))
    {'rows': ..., 'above': ..., 'above_1.1': ..., 'median_ie': ..., 'q95_ie': ...}

    `above`: share of rows where the joint effect exceeds the sum of the two single ones; `above_1.1`: exceeds
    1.1 times that sum; median and 95% quantile of the interaction. NaN without rows.
    """
    alone = repair.d1 + repair.d2
    return {
        "rows": len(repair),
        "above": (repair.joint > alone).mean(),
        "above_1.1": (repair.joint > 1.1 * alone).mean(),
        "median_ie": repair.interaction.median(),
        "q95_ie": repair.interaction.quantile(0.95),
    }


# --- 4. name movers -------------------------------------------------------------------------------


def _read_out(s: Setting, weights: Tensor) -> Tensor:
    """Directions g [n, D]: write . g is a write's direct effect on weights . logits, the final norm's scale frozen.

    `weights` [n, V]: how much each token's logit counts.
    """
    norm, x = s.net.norm, at(s.clean.mid[-1] + s.clean.mlp[-1], s.last)
    g = weights @ s.net.unembed.weight * norm.weight
    if isinstance(norm, nn.LayerNorm):
        scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        return (g - g.mean(-1, keepdim=True)) / scale
    return g / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


def _shares(s: Setting) -> tuple[Tensor, Tensor]:
    """How the metric weighs the logits of good and of bad tokens [n, V]; one-hot for a single answer token."""
    logits = s.net.unembed(s.net.norm(at(s.clean.mid[-1] + s.clean.mlp[-1], s.last)))
    return tuple(logits.masked_fill(~keep, -torch.inf).softmax(-1) for keep in (s.good, s.bad))


@torch.no_grad()
def direct_attribution(model: nn.Module, task: Task, share: float = 0.1, attends: float = 0.5) -> pd.DataFrame:
    """Direct logit attribution of every head at the last token, and which answer token it attends to.

    >>> direct_attribution(model._module, task[:8]).columns.tolist()      # a row per head
    ['part', 'layer', 'head', 'dla', 'share', 'good_logit', 'bad_logit', 'attention_good', 'attention_bad', 'top_good',
     'top_bad', 'role']

    `dla`: mean of z W_O . (unembed[good] - unembed[bad]) through the final norm with its scale frozen, in
    logits; for sets of answers, the metric's own weights on them. `share`: dla / mean metric of the clean
    run. `good_logit`, `bad_logit`: what the head writes on the good and on the bad tokens' logits, relative
    to the vocabulary's mean. `attention_*`: mean attention from the last token to all positions holding a
    good (bad) token; `top_*`: share of prompts whose most attended position holds one. `role`: `name mover`
    (share >= `share`, top_good >= `attends`, good_logit > 0: attends to the answer and writes it),
    `suppressor` (share >= `share`, top_bad >= `attends`, bad_logit < 0: attends to the wrong name and writes
    against it), or empty. All attention columns are 0 for tasks whose prompts do not contain the answers.
    """
    s = set_up(model, task)
    good, bad = _shares(s)
    uniform = torch.full_like(good, 1 / good.shape[1])
    directions = [_read_out(s, w) for w in (good - bad, good - uniform, bad - uniform)]
    holds = [answers.gather(1, s.ids) & s.mask for answers in (s.good, s.bad)]
    total, rows = s.metric.mean().item(), []
    for layer, block in enumerate(s.net.blocks):
        q, k, _ = s.clean.qkv[layer]
        attention = at(attention_scores(q, k, block.scaling).softmax(-1).transpose(1, 2), s.last)  # [n, H, S]
        top = attention.argmax(-1)
        written = torch.einsum("nhd,hde->nhe", at(s.clean.z[layer], s.last), block.write)
        columns = [torch.einsum("nhe,ne->h", written, g) / len(g) for g in directions]
        columns += [(attention * here[:, None]).sum(-1).mean(0) for here in holds]
        columns += [here.gather(1, top).float().mean(0) for here in holds]
        for head, (dla, *rest) in enumerate(torch.stack(columns, 1).tolist()):
            rows.append((name_of((layer, head)), layer, head, dla, dla / total if total > 0 else float("nan"), *rest))
    names = ["part", "layer", "head", "dla", "share", "good_logit", "bad_logit"]
    names += ["attention_good", "attention_bad", "top_good", "top_bad"]
    frame = pd.DataFrame(rows, columns=names)
    enough = frame.share >= share
    frame["role"] = ""
    frame.loc[enough & (frame.top_bad >= attends) & (frame.bad_logit < 0), "role"] = "suppressor"
    frame.loc[enough & (frame.top_good >= attends) & (frame.good_logit > 0), "role"] = "name mover"
    return frame


# --- 5. compensation ------------------------------------------------------------------------------


def _mean_from_the_end(z: Tensor, last: Tensor) -> Tensor:
    """Replace z [n, S, d] by its mean over prompts, at equal distance from each prompt's last token."""
    distance = last[:, None] - torch.arange(z.shape[1], device=z.device)  # negative on padding
    mean = z.new_zeros(z.shape[1], z.shape[2])
    for steps in range(z.shape[1]):
        here = distance == steps
        if here.any():
            mean[steps] = z[here].mean(0)
    return mean[distance.clamp(min=0)]


@torch.no_grad()
def compensation(model: nn.Module, task: Task, ablation: str = "mean") -> pd.DataFrame:
    """Ablate each head at all positions: its direct effect, the total effect, and who makes up for the loss.

    >>> compensation(model._module, task[:8]).columns.tolist()            # a row per ablated head and later part
    ['ablated', 'layer', 'later', 'later_is_head', 'direct', 'direct_share', 'total', 'compensated', 'gain',
     'gain_share']

    `direct`: what the ablated head's own direct logit attribution loses (final norm frozen at the clean run's
    scale), in logits; `direct_share` of the mean clean metric; `total`: what the metric really loses;
    `compensated`: 1 - total / direct, the share that the rest of the model (later parts and the final norm's
    scale) makes up for; `gain`: how much the later part's direct attribution rises, `gain_share` of `direct`.
    Shares say little where `direct` is small.

    `ablation`: `mean` puts the mean over the clean prompts at equal distance from the last token, `corrupt`
    the corrupt run's value. As the backup heads of Wang et al. 2022, section 3.4, and the direct and total
    effects of McGrath et al. 2023 (the Hydra effect).
    """
    if ablation not in ("mean", "corrupt"):
        raise GimkitError(f"unknown ablation {ablation!r}; use 'mean' or 'corrupt'")
    s = set_up(model, task)
    good, bad = _shares(s)
    g = _read_out(s, good - bad)
    metric, rows = s.metric.mean().item(), []

    def writes(z: Tensor, layer: int) -> Tensor:  # direct attribution of each head, [n, H]
        return torch.einsum("nhd,hde,ne->nh", z, s.net.blocks[layer].write, g)

    clean_heads = [writes(at(z, s.last), layer) for layer, z in enumerate(s.clean.z)]
    clean_mlps = [(at(out, s.last) * g).sum(-1) for out in s.clean.mlp]
    for layer, head in (part for part in every_part(s.net) if part[1] is not None):
        z = s.clean.z[layer][:, :, head]
        value = _mean_from_the_end(z, s.last) if ablation == "mean" else s.corrupt.z[layer][:, :, head]
        tail = resume(s.net, s.clean, s.last, (layer, head), value)
        written = at(z - value, s.last) @ s.net.blocks[layer].write[head]
        direct = (written * g).sum(-1).mean().item()
        total = (s.metric - metric_of(s.net, tail.x, s.good, s.bad)).mean().item()
        gains = {(i, None): (out * g).sum(-1) - clean_mlps[i] for i, out in tail.mlp.items()}
        for i, later_z in tail.z.items():
            gains |= {(i, h): gain for h, gain in enumerate((writes(later_z, i) - clean_heads[i]).T)}
        share = direct / metric if metric > 0 else float("nan")
        compensated = 1 - total / direct if direct else float("nan")
        for part, gain in gains.items():
            gain = gain.mean().item()
            gain_share = gain / direct if direct else float("nan")
            part_columns = (name_of((layer, head)), layer, name_of(part), part[1] is not None)
            rows.append((*part_columns, direct, share, total, compensated, gain, gain_share))
    names = ["ablated", "layer", "later", "later_is_head", "direct", "direct_share", "total", "compensated"]
    return pd.DataFrame(rows, columns=[*names, "gain", "gain_share"])


def compensation_summary(frame: pd.DataFrame, share: float = 0.1) -> dict[str, float]:
    """Compensation among the heads whose direct effect is at least `share` of the clean metric.

    >>> compensation_summary(compensation(model._module, task[:8]))
    {'ablated_heads': ..., 'compensated': ..., 'backed_up_heads': ..., 'backup_share': ...}

    `ablated_heads`: number of such heads; `compensated`: the largest 1 - total / direct among them;
    `backed_up_heads`: how many have a later head that gains at least `share` of the lost direct effect;
    `backup_share`: the largest such gain of one later head. NaN where there is none.
    """
    important = frame[frame.direct_share >= share]
    by_heads = important[important.later_is_head]
    return {
        "ablated_heads": important.ablated.nunique(),
        "compensated": important.compensated.max(),
        "backed_up_heads": by_heads.ablated[by_heads.gain_share >= share].nunique(),
        "backup_share": by_heads.gain_share.max(),
    }


# --- all of them ----------------------------------------------------------------------------------


def phenomena(hf_model: nn.Module, tasks: dict[str, Task]) -> dict[str, float]:
    """Every measurement of this module on every task, as one flat row of numbers.

    >>> list(phenomena(model._module, {"ioi": task[:4]}))[:3]
    ['ioi.accuracy', 'ioi.metric', 'ioi.corrupt_metric']

    For each task: `accuracy` (share of clean prompts with a positive metric), mean `metric` and
    `corrupt_metric`; `layers` (`layers_taking_part`); `depth`; `late_q`, `late_k`, `late_v` (`late_dependence`
    with paths through MLPs); `rows`, `above`, `above_1.1`, `median_ie`, `q95_ie` (`repair_summary`);
    `name_movers`, `suppressors` (numbers of heads) and `top_dla` (largest share of one head);
    `ablated_heads`, `compensated`, `backed_up_heads`, `backup_share` (`compensation_summary`, mean ablation).
    """
    row = {}
    for name, task in tasks.items():
        with torch.no_grad():
            s = set_up(hf_model, task)
        nodes = node_effects(hf_model, task)
        receivers = strongest(nodes, limit=8)
        edges = path_effects(hf_model, task, receivers)
        paths = path_effects(hf_model, task, receivers, through_mlps=True)
        heads = direct_attribution(hf_model, task)
        numbers = {
            "accuracy": (s.metric > 0).float().mean().item(),
            "metric": s.metric.mean().item(),
            "corrupt_metric": s.corrupt_metric.mean().item(),
            "layers": layers_taking_part(nodes),
            "depth": depth(edges),
            **{f"late_{kind}": late_dependence(paths, kind, len(s.net.blocks)) for kind in "qkv"},
            **repair_summary(attention_self_repair(hf_model, task)),
            "name_movers": (heads.role == "name mover").sum(),
            "suppressors": (heads.role == "suppressor").sum(),
            "top_dla": heads.share.max(),
            **compensation_summary(compensation(hf_model, task)),
        }
        row |= {f"{name}.{key}": float(value) for key, value in numbers.items()}
    return row
