"""The command line: `python -m gimkit --help`."""

import argparse
import sys
from pathlib import Path

import pandas
import torch

from gimkit.circuits.scores import check_whole
from gimkit.errors import GimkitError
from gimkit.files import write_table
from gimkit.models import BUNDLED, load
from gimkit.tasks.text_sets import TEXT_SETS

L3D = ("tms", "tms x3", "superposed", "high rank", "squared", "attention", "digits")
SHOW_PHENOMENA = ("ioi, trained templates", "ioi_twice, trained templates", "odd_one_out, 3 people",
                  "induction, three times")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input gives one line on standard error and exit code 2.

    >>> main(["demo", "--model", "mini-lama"])               # the message goes to stderr
    Loading mini-lama ...
    2
    """
    parser = argparse.ArgumentParser("python -m gimkit", description="GIM's gradients on nnsight models.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    command = commands.add_parser("demo", help="show GIM at work on a bundled model, and draw figures/ (no network)")
    command.add_argument("--model", default="mini-llama", help="bundled name, folder or hub id (default: %(default)s)")
    command.set_defaults(run=demo)

    command = commands.add_parser("train", help="train a bundled model from a seed")
    command.add_argument("name", metavar="NAME", choices=BUNDLED, help=" or ".join(BUNDLED))
    command.add_argument("--seed", type=int, default=0, help="same seed, same weights (default: %(default)s)")
    command.add_argument("--out", type=Path, required=True, help="folder for the weights, config and tokenizer")
    command.set_defaults(run=train)

    command = commands.add_parser("measure", help="accuracies per task, and the phenomena that the notebooks teach")
    command.add_argument("model", metavar="NAME_OR_FOLDER", help="a bundled name, or a folder that `train` wrote")
    command.set_defaults(run=measure)

    command = commands.add_parser("compare", help="CPR and CMD of every edge-scoring method on every task")
    command.add_argument("model", metavar="NAME", help="a bundled name, a folder or a hub id")
    command.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all of gimkit.tasks")
    command.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all")
    command.add_argument("-n", type=int, default=32, help="prompt pairs a task for scores, and as many others to "
                         "evaluate circuits (default: %(default)s)")
    command.add_argument("--seeds", type=int, default=1, help="draws of prompts (default: %(default)s)")
    command.add_argument("--csv", type=Path, help="write a row per seed here, and the curves to NAME-curves.csv")
    command.set_defaults(run=compare)

    command = commands.add_parser("explore", help="a circuit to click through, as one HTML file that loads nothing")
    command.add_argument("model", metavar="NAME", help="a bundled name, a folder or a hub id")
    command.add_argument("--task", default="ioi", help="one of gimkit.tasks (default: %(default)s)")
    command.add_argument("--method", default="gim", help="one of score_edges's (default: %(default)s)")
    command.add_argument("-n", type=int, default=16, help="prompt pairs for the scores, and as many others to evaluate "
                         "circuits (default: %(default)s)")
    command.add_argument("--out", type=Path, required=True, help="the .html file")
    command.set_defaults(run=explore)

    command = commands.add_parser("shapley", help="scores of tokens, or of heads and MLPs, against Shapley values")
    command.add_argument("model", metavar="NAME", help="a bundled name, a folder or a hub id")
    command.add_argument("--nodes", action="store_true", help="heads and MLPs (sampled) instead of tokens (exact)")
    command.add_argument("--sets", nargs="+", metavar="SET", help="prompt sets, default: all")
    command.add_argument("-n", type=int, default=12, help="prompts a set and seed (default: %(default)s)")
    command.add_argument("--seeds", type=int, default=3, help="draws of prompts (default: %(default)s)")
    command.add_argument("--csv", type=Path, help="write the table here; of tokens, also NAME-sets.csv")
    command.set_defaults(run=shapley)

    command = commands.add_parser("texts", help="token faithfulness on BoolQ, FEVER, Movies, ... (extra [data])")
    command.add_argument("model", metavar="NAME", help="an instruction model: a hub id or a folder")
    command.add_argument("data_set", metavar="DATA_SET", choices=TEXT_SETS, help=" or ".join(TEXT_SETS))
    command.add_argument("--methods", nargs="+", metavar="METHOD", help="of gimkit.attribute, default: seven of them")
    command.add_argument("-n", type=int, default=100, help="texts (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="which texts (default: %(default)s)")
    command.add_argument("--csv", type=Path, help="write the table here too")
    command.set_defaults(run=texts)

    command = commands.add_parser("figures", help="draw the papers' figures, with captions, into figures/")
    command.add_argument("names", nargs="*", metavar="NAME", help="which ones, default: all")
    command.add_argument("--model", default="mini-llama", help="bundled name, folder or hub id (default: %(default)s)")
    command.add_argument("-n", type=int, default=12, help="prompts of each task (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the prompts (default: %(default)s)")
    command.add_argument("--tasks", nargs="+", metavar="TASK", default=(), help="default: each figure's own")
    command.set_defaults(run=figures)

    command = commands.add_parser("l3d", help="circuits in parameter space: of toys, of attention, of a small CNN")
    command.add_argument("name", metavar="NAME", choices=L3D, help=", ".join(map(repr, L3D)))
    command.add_argument("--seeds", type=int, help="toys and decompositions (default: 5 toys, 1 real model)")
    command.add_argument("--out", type=Path, help="write the table here; parts go to a folder of that name, so that a "
                         "run that was cut off goes on")
    command.add_argument("--epochs", type=int, help="of the decompositions; default: the run's own")
    command.add_argument("--model", default="mini-gpt2", help="for attention: bundled name, folder or hub id "
                         "(default: %(default)s)")
    command.add_argument("--blocks", type=int, nargs="+", default=[3], help="for attention (default: 3)")
    command.set_defaults(run=l3d)

    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 2
    if getattr(options, "model", None) in BUNDLED:
        torch.set_num_threads(1)  # models this small only lose by sharing the work
    try:
        options.run(options)
    except (GimkitError, OSError) as error:
        print(f"gimkit: {error}", file=sys.stderr)
        return 2
    return 0


def demo(options) -> None:
    from gimkit.demo import demo

    demo(options.model)


def figures(options) -> None:
    from gimkit.figures import draw

    draw(options.names, options.model, options.n, options.seed, options.tasks)


def train(options) -> None:
    from gimkit.models.train import train

    options.out.mkdir(parents=True, exist_ok=True)  # half an hour of training must not end in a refusal
    print(f"wrote {train(options.name, options.seed, options.out)}")


def measure(options) -> None:
    from gimkit.models.measure import accuracy, examined
    from gimkit.models.phenomena import phenomena

    model = load(options.model)
    print("Accuracy: share of prompts whose right answer is above the wrong one. Name pairs are held out of training.")
    print(accuracy(model).to_string(index=False, float_format="{:.3f}".format), flush=True)
    tasks = {task.name: task for name, task in examined(model, n=64).items() if name in SHOW_PHENOMENA}
    rows = [(*key.split(".", 1), value) for key, value in phenomena(model._module, tasks).items()]
    table = pandas.DataFrame(rows, columns=["task", "measure", "value"]).set_index(["measure", "task"])["value"]
    print("\nPhenomena, 64 prompts each; help(gimkit.models.phenomena.phenomena) says what each measure is.")
    print(table.unstack(sort=False).to_string(float_format="{:.2f}".format))


def compare(options) -> None:
    from gimkit.compare import COMPARED, TASKS, compare, over_seeds

    table, curves = compare(options.model, options.tasks or TASKS, options.methods or COMPARED, n=options.n,
                            seeds=options.seeds)
    print("Scores are from some prompts, circuits run on others. Means over seeds, also of the ends of the 95%\n"
          "bootstrap intervals over prompts; growth_mib: the most that resident memory grew while scoring.")
    print(over_seeds(table).to_string(index=False, float_format="{:.2f}".format))
    for note in table.get("note", pandas.Series(dtype=str)).dropna().unique():
        print(note)
    if options.csv:
        for frame, path in ((table, options.csv), (curves, options.csv.with_name(f"{options.csv.stem}-curves.csv"))):
            write_table(path, frame, digits=4)
            print(f"wrote {path}")


def explore(options) -> None:
    import gimkit
    from gimkit.compare import TASKS

    if options.task not in TASKS:
        raise GimkitError(f"unknown task {options.task!r}; use {', '.join(TASKS)}")
    model = load(options.model)
    drawn = getattr(gimkit.tasks, options.task)(model, n=2 * options.n, seed=0)
    scored, evaluated = drawn[:len(drawn) // 2], drawn[len(drawn) // 2:]
    edges = gimkit.score_edges(model, scored, options.method)
    curve = gimkit.faithfulness(model, evaluated, edges, absolute=True)
    roles = gimkit.circuits.head_roles(model, scored).set_index("node")["role"]
    print(f"wrote {gimkit.explore(model, scored[0].clean, edges, curve, roles).save(options.out)}")


def shapley(options) -> None:
    check_whole("seeds", options.seeds)
    if options.nodes:
        from gimkit.compare_nodes import TASKS, compare_nodes

        table = compare_nodes(options.model, options.sets or tuple(TASKS), n=options.n,
                              seeds=range(options.seeds))
        write(table, options.csv, "Correlation with sampled Shapley values; noise: of those with another sample.")
        return
    from gimkit.compare_tokens import SETS, interactions, measure, summarise

    rows = measure(options.model, options.sets or tuple(SETS), n=options.n, seeds=range(options.seeds))
    write(interactions(rows), options.csv and options.csv.with_name(f"{options.csv.stem}-sets.csv"),
          "Do single effects sum to more than the joint one (ratio above 1: needed jointly), or to less (redundant)?")
    write(summarise(rows), options.csv,
          "Correlation with exact Shapley values, means over prompts; gim_ahead: GIM's Pearson less the method's.")


def texts(options) -> None:
    from gimkit.compare_texts import COMPARED, compare_texts
    from gimkit.tasks import load_texts

    model = load(options.model)
    chosen = load_texts(options.data_set, model, options.n, options.seed)
    print(f"{len(chosen)} texts of {chosen.name}; left out: {'; '.join(chosen.dropped) or 'none'}", flush=True)
    table = compare_texts(model, chosen, options.methods or COMPARED)
    write(table, options.csv, "High comprehensiveness, low sufficiency are good; 95% bootstrap intervals over texts.")


def l3d(options) -> None:
    from gimkit.l3d import runs

    torch.set_num_threads(1)  # toys are tiny
    folder = options.out and options.out.with_suffix("")
    if options.name in runs.VARIANTS:
        table = runs.run(options.name, options.seeds or 5, folder, options.epochs)
    else:
        table = runs.run_real(options.name, options.model, options.blocks, options.seeds or 1, folder, options.epochs)
    print("Errors: norm is |g - g^| / |g|, the paper's; squared its square, the reference implementation's. new_: on\n"
          "samples that training did not see. Means over seeds, with 95% t intervals.")
    print(runs.summary(table).T.to_string())
    if options.out:
        write_table(options.out, table)
        print(f"wrote {options.out}")


def write(table: pandas.DataFrame, csv: Path | None, title: str) -> None:
    """Print a table under its title, and save it where asked."""
    print(f"{title}\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
    if csv:
        write_table(csv, table, digits=4)
        print(f"wrote {csv}")
