"""L3D compared with GIM: the heads in which a subnetwork of attention lies, and the heads' GIM scores."""

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

    >>> from gimkit.l3d.language import attention_run
    >>> small = gimkit.load("mini-gpt2")
    >>> found, _ = attention_run(small, [2], prompts=2, names=["ioi"], epochs=1, n=4)
    >>> head_shares(found, small).columns.tolist()
    ['a2.h0', 'a2.h1', 'a2.h2', 'a2.h3']

    A head's weights are those of its queries, keys and values, and its columns of the output projection. Keys and
    values that several heads share count for each head in equal parts. The output's bias belongs to no head and is left
    out, so that rows sum to 1 over heads.

    Args:
        found: a decomposition of attention blocks, of `gimkit.l3d.language.attention_run`.
        model: its nnsight model.
    Raises:
        GimkitError: the parameters are neither GPT-2's (c_attn, c_proj) nor named q_proj, k_proj, v_proj, o_proj.
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
    """Does the subnetwork that selects a task lie in the heads with large scores? A row for each subnetwork.

    >>> from gimkit.l3d.language import attention_run
    >>> small = gimkit.load("mini-gpt2")
    >>> found, table = attention_run(small, [2], prompts=2, names=["ioi"], epochs=1, n=4)
    >>> beside_gim(found, small, gimkit.tasks.ioi(small, n=4), table).columns.tolist()
    ['subnetwork', 'kind', 'p_act', 'rho']

    Args:
        found, table: of `gimkit.l3d.language.attention_run`.
        model: its nnsight model.
        task: for the scores of the heads.
        method: of `gimkit.score_nodes`.
    Returns:
        kind: the kinds of sample that the subnetwork selects best. rho: Spearman's correlation, over the heads of the
        decomposed blocks, of the subnetwork's share in each head with the head's |score|. The other subnetworks are
        the control: none of them was chosen for the task.
    """
    shares = head_shares(found, model)
    scores = score_nodes(model, task, method=method).frame().set_index("node")["score"].abs()[list(shares.columns)]
    kinds = table.groupby("subnetwork")["kind"].agg(", ".join)
    return pandas.DataFrame({
        "subnetwork": range(len(found)), "kind": [kinds.get(i, "") for i in range(len(found))],
        "p_act": found.p_act.tolist(), "rho": [float(spearmanr(row, scores).statistic) for row in shares.to_numpy()]})
