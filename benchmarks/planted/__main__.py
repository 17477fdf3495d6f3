"""How well each method finds a circuit that is known: `python -m benchmarks.planted`."""

import argparse
import sys
from pathlib import Path

from benchmarks.planted.measure import COMPARED, KINDS, NOISES, measure, summary
from benchmarks.tables import show
from gimkit.circuits.edges import METHODS
from gimkit.cli import run_command
from gimkit.errors import check_all_known, check_whole
from gimkit.files import write_table


def main(arguments: list[str] | None = None) -> int:
    """Print AUROC and average precision of every method; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.planted", description=__doc__)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=COMPARED, help="of gimkit.score_edges")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", default=KINDS, help="compiled, trained (default: both)")
    parser.add_argument("--seeds", type=int, default=5, help="of the compiled weights' noise (default: %(default)s)")
    parser.add_argument("--noises", nargs="+", type=float, default=NOISES, help="added to each compiled weight: the "
                        "first at which the program works (default: 0.02 and less)")
    parser.add_argument("--csv", type=Path, help="write a row for each model and method here")
    return run_command(_print, parser.parse_args(arguments))


def _print(options) -> None:
    check_all_known("method", options.methods, METHODS)
    check_all_known("kind", options.kinds, KINDS)
    table = measure(options.methods, check_whole("seeds", options.seeds), noises=options.noises, kinds=options.kinds)
    means = table.groupby(["kind", "program", "method"], sort=False).mean(numeric_only=True).reset_index()
    show(means.drop(columns="seed"), None, "Means over seeds:")
    show(summary(table), None, "Means over programs (and shapes), with 95% bootstrap intervals over them:")
    if options.csv:
        write_table(options.csv, table, digits=4)
        print(f"wrote {options.csv}")


if __name__ == "__main__":
    sys.exit(main())
