"""Comprehensiveness and sufficiency of token attribution on public data sets: `python -m gimkit texts`."""

import pandas
from tqdm.auto import tqdm

from gimkit.tokens.faithfulness import token_faithfulness
from gimkit.tasks.texts import Texts
from gimkit.tokens import attribute

COMPARED = ("gradient", "ig", "deeplift", "transformer-lrp", "attnlrp", "gim", "random")


def compare_texts(model, texts: Texts, methods=COMPARED, remote: bool | str = False) -> pandas.DataFrame:
    """How faithful each method's token scores are, with bootstrap intervals over the texts.

    >>> texts = Texts("own", (task.clean[0][task.mask[0]],), (task.good[0][0],), (task[0].clean,))
    >>> compare_texts(model, texts, ["gim"]).columns.tolist()             # a row per method, scale and measure
    ['data_set', 'method', 'scale', 'measure', 'value', 'low', 'high', 'n', 'undefined']

    texts: of `gimkit.tasks.load_texts`. methods: of `gimkit.attribute`, random noise among them as a control.
    n, undefined: texts in the mean, and those left out because the answer's logit is not above 0.
    remote: as in `gimkit.attribute`.
    Source: the tables of arXiv 2505.17630, whose own are "comprehensiveness_zero_filled" and "sufficiency" on the scale
    "logit". Differences: IG takes 20 steps (there 50), and those that `load_texts` and `token_faithfulness` name.
    """
    found = []
    for method in methods:
        scores = [attribute(model, *question, method=method, seed=number, remote=remote) for number, question
                  in enumerate(zip(tqdm(texts.prompts, desc=method, delay=2, leave=False), texts.targets))]
        result = token_faithfulness(model, texts.prompts, scores, texts.targets, remote=remote)
        found.append(result.summary())
    table = pandas.concat(found, ignore_index=True)
    table.insert(0, "data_set", texts.name)
    return table
