"""L3D meets GIM: in which heads a subnetwork of attention blocks lies, beside the heads that GIM finds important."""

import re

import pandas
import torch
from scipy.stats import spearmanr

from gimkit.circuits import score_nodes
from gimkit.errors import GimkitError
from gimkit.l3d.decomposition import Decomposition
from gimkit.model.architecture import architecture_of


def head_shares(found: Decomposition, model) -> pandas.DataFrame:
    """The share of each subnetwork's squared norm in each head's weights: a row per subnetwork, a column per head.

    >>> head_shares(found, gimkit.load("mini-gpt2")).loc[3].round(2)     # columns a0.h0, a0.h1, ...

    A head's weights are its queries, keys and values and what reads it in the output projection; keys and values that
    several heads share count for each in equal parts. The output's bias belongs to no head and is left out, so rows sum
    to 1 over heads. found: of attention blocks, by `attention_run`.
    Raises GimkitError for attention whose parameters are neither GPT-2's (c_attn, c_proj) nor named q_proj, k_proj,
    v_proj, o_proj.
    """
    heads, rows = architecture_of(model).n_heads, []
    shared = getattr(model._module.config, "num_key_value_heads", None) or heads
    for subnetwork in range(len(found)):
        energy = {}
        for name, part in found.subnetwork(subnetwork).items():
            block = int(re.search(r"\.(\d+)\.", name)[1])
            for head, value in enumerate(_by_head(name, part.square(), heads, shared)):
                energy[f"a{block}.h{head}"] = energy.get(f"a{block}.h{head}", 0.0) + value
        total = sum(energy.values())
        rows.append({head: value / total for head, value in energy.items()})
    return pandas.DataFrame(rows)


def _by_head(name: str, square: torch.Tensor, heads: int, shared: int) -> list[float]:
    """Sums of one parameter's squares, one per head."""
    module, kind = name.split(".")[-2:]
    if module == "c_attn":  # queries, keys and values side by side, in columns
        return square.unflatten(-1, (3, heads, -1)).movedim(-2, 0).flatten(1).sum(1).tolist()
    if module in ("c_proj", "o_proj"):
        rows = square if module == "c_proj" else square.T
        return [0.0] * heads if kind == "bias" else rows.unflatten(0, (heads, -1)).flatten(1).sum(1).tolist()
    if module in ("q_proj", "k_proj", "v_proj"):
        groups = heads if module == "q_proj" else shared
        own = square.unflatten(0, (groups, -1)).flatten(1).sum(1)
        return (own * groups / heads).repeat_interleave(heads // groups).tolist()
    raise GimkitError(f"do not know which head the parameter {name} belongs to; GPT-2's and Llama's names are known")


def beside_gim(found: Decomposition, model, task, table: pandas.DataFrame, method: str = "gim") -> pandas.DataFrame:
    """Does the subnetwork that selects a task lie in the heads that GIM finds important for it? A row per subnetwork.

    >>> beside_gim(found, model, gimkit.tasks.ioi(model, n=64), table)

    table: of `attention_run` on the same blocks. Columns: subnetwork; kind, the kinds of sample that it selects best;
    p_act; rho, Spearman's correlation, over the heads of the decomposed blocks, of its share in each head with |score|
    of the head on the task. The other subnetworks are the control: of them none was chosen for the task.
    """
    shares = head_shares(found, model)
    scores = score_nodes(model, task, method=method).frame().set_index("node")["score"].abs()[list(shares.columns)]
    kinds = table.groupby("subnetwork")["kind"].agg(", ".join)
    return pandas.DataFrame({
        "subnetwork": range(len(found)), "kind": [kinds.get(i, "") for i in range(len(found))],
        "p_act": found.p_act.tolist(), "rho": [float(spearmanr(row, scores).statistic) for row in shares.to_numpy()]})
