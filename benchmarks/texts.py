"""Comprehensiveness and sufficiency of token attribution on public data sets: `python -m benchmarks.texts`."""

import argparse
import sys
from pathlib import Path

import pandas
from tqdm.auto import tqdm

import gimkit
from benchmarks.tables import show
from gimkit.cli import run_command
from gimkit.tasks import load_texts
from gimkit.tasks.text_sets import TEXT_SETS
from gimkit.tasks.texts import Texts
from gimkit.tokens import attribute
from gimkit.tokens.faithfulness import token_faithfulness

COMPARED = ("gradient", "ig", "deeplift", "transformer-lrp", "attnlrp", "gim", "random")


def compare_texts(model, texts: Texts, methods=COMPARED, remote: bool | str = False) -> pandas.DataFrame:
    """The faithfulness of each method's token scores, with bootstrap intervals over the texts.

    >>> texts = Texts("own", (task.clean[0][task.mask[0]],), (task.good[0][0],), (task[0].clean,))
    >>> compare_texts(model, texts, ["gim"]).columns.tolist()             # a row per method, scale and measure
    ['data_set', 'method', 'scale', 'measure', 'value', 'low', 'high', 'n', 'undefined']

    Args:
        model: an nnsight model.
        texts: of `gimkit.tasks.load_texts`.
        methods: of `gimkit.attribute`; "random" is the control.
        remote: as in `gimkit.attribute`.
    Returns:
        Means with 95% bootstrap intervals. n: texts in the mean; undefined: texts that are left out, because the logit
        of the answer is not above 0.
    Source: the tables of arXiv 2505.17630, whose own are "comprehensiveness_zero_filled" and "sufficiency" on the scale
        "logit". Differences: IG takes 20 steps (there 50), and those of `load_texts` and `token_faithfulness`.
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


def main(arguments: list[str] | None = None) -> int:
    """Print token faithfulness on one data set; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.texts",
                                     description="Token faithfulness on BoolQ, FEVER, Movies, ... (extra [data]).")
    parser.add_argument("model", metavar="NAME", help="an instruction model: a hub id or a folder")
    parser.add_argument("data_set", metavar="DATA_SET", choices=TEXT_SETS, help=" or ".join(TEXT_SETS))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=COMPARED,
                        help="of gimkit.attribute, default: seven of them")
    parser.add_argument("-n", type=int, default=100, help="texts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which texts (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    return run_command(_print_faithfulness, parser.parse_args(arguments))


def _print_faithfulness(options) -> None:
    """Print the table, and save it where wanted."""
    model = gimkit.load(options.model)
    chosen = load_texts(options.data_set, model, options.n, options.seed)
    print(f"{len(chosen)} texts of {chosen.name}; left out: {'; '.join(chosen.dropped) or 'none'}", flush=True)
    show(compare_texts(model, chosen, options.methods), options.csv,
         "High comprehensiveness, low sufficiency are good; 95% bootstrap intervals over texts.")


if __name__ == "__main__":
    sys.exit(main())
