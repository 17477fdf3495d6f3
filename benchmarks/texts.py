"""Comprehensiveness and sufficiency of token attribution on public data sets: `python -m benchmarks.texts`."""

import argparse
import hashlib
import sys
from pathlib import Path

import pandas
from tqdm.auto import tqdm

from benchmarks.tables import show
from figures.parts import Request
from gimkit.cli import run_command
from gimkit.errors import GimkitError, check_all_known
from gimkit.tasks import load_texts
from gimkit.tasks.hub import rows_given
from gimkit.tasks.text_sets import TEXT_SETS
from gimkit.tasks.texts import Texts
from gimkit.tokens import attribute
from gimkit.tokens.attribute import METHODS
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


def layout(table: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """The paper's layout: a row for each method, a column for each data set, means with their intervals.

    >>> texts = Texts("own", (task.clean[0][task.mask[0]],), (task.good[0][0],), (task[0].clean,))
    >>> layout(compare_texts(model, texts, ["gim"]), "sufficiency").columns.tolist()
    ['own']

    Args:
        table: tables of `compare_texts`, one below the other.
        measure: "comprehensiveness", "comprehensiveness_zero_filled" or "sufficiency", on the scale "logit".
    """
    chosen = table[(table.scale == "logit") & (table.measure == measure)].copy()
    chosen["cell"] = ["{:.2f} [{:.2f}, {:.2f}]".format(*row) for row in zip(chosen.value, chosen.low, chosen.high)]
    wide = chosen.pivot(index="method", columns="data_set", values="cell")
    return wide.loc[list(dict.fromkeys(chosen.method)), list(dict.fromkeys(chosen.data_set))]


def main(arguments: list[str] | None = None) -> int:
    """Print token faithfulness on the data sets; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.texts",
                                     description="Token faithfulness on BoolQ, FEVER, Movies, ... (extra [data]).")
    parser.add_argument("model", metavar="NAME", help="an instruction model: a hub id or a folder")
    parser.add_argument("--data", nargs="+", metavar="DATA_SET", default=tuple(TEXT_SETS), help="default: all six")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=COMPARED,
                        help="of gimkit.attribute, default: seven of them")
    parser.add_argument("-n", type=int, default=100, help="texts of each data set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which texts (default: %(default)s)")
    parser.add_argument("--rows", type=Path, metavar="FOLDER", help="rows in FOLDER/DATA_SET.jsonl, instead of the "
                        "hub's (scifact: scifact-claims.jsonl and scifact-corpus.jsonl)")
    parser.add_argument("--parts", type=Path, default=Path("runs/texts"), help="folder of the finished parts, "
                        "from which an interrupted run continues (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    return run_command(_print_faithfulness, parser.parse_args(arguments))


def _print_faithfulness(options) -> None:
    """Print the tables, and save their rows where wanted."""
    check_all_known("data set", options.data, TEXT_SETS)
    check_all_known("method", options.methods, METHODS)
    request, tables = Request(options.model, folder=options.parts), []
    model = request.model
    for name in options.data:
        try:
            chosen = load_texts(name, model, options.n, options.seed, _rows(options.rows, name))
        except GimkitError as error:
            if len(options.data) == 1:
                raise
            print(f"{name}: left out: {error}", flush=True)
            continue
        lengths = sorted(map(len, chosen.prompts))
        print(f"{len(chosen)} texts of {name}, {lengths[0]} to {lengths[-1]} tokens; left out: "
              f"{'; '.join(chosen.dropped) or 'none'}", flush=True)
        prompts = hashlib.sha256(repr((chosen.texts, chosen.targets)).encode()).hexdigest()[:16]
        for method in options.methods:
            def one(method=method, chosen=chosen) -> pandas.DataFrame:
                return compare_texts(model, chosen, [method])

            tables.append(request.kept(name, method, {"texts": prompts}, one))
    if not tables:
        raise GimkitError("no data set has usable texts for this model")
    table = pandas.concat(tables, ignore_index=True)
    for measure, better in (("comprehensiveness", "high"), ("sufficiency", "low")):
        print(f"\n{measure}, {better} is good; 95% bootstrap intervals over texts\n{layout(table, measure)}")
    show(table, options.csv, "\nOn both scales:")


def _rows(folder: Path | None, name: str):
    """A data set's rows in a folder; None for the hub's."""
    if folder is None:
        return None
    if name == "scifact":
        return [rows_given(folder / f"scifact-{part}.jsonl") for part in ("claims", "corpus")]
    return rows_given(folder / f"{name}.jsonl")


if __name__ == "__main__":
    sys.exit(main())
