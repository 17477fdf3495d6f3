"""`python -m benchmarks.l3d_runs NAME`: circuits in parameter space of toys, of attention, of a small CNN."""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.l3d_runs import runs
from gimkit.cli import run_command
from gimkit.files import write_table

NAMES = (*runs.VARIANTS, "attention", "digits")


def main(arguments: list[str] | None = None) -> int:
    """Run one family; bad input gives one line and exit code 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.l3d_runs",
                                     description="L3D on toys, on attention of a language model, on a small CNN.")
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(map(repr, NAMES)))
    parser.add_argument("--seeds", type=int, help="toys and decompositions (default: 5 toys, 1 real model)")
    parser.add_argument("--out", type=Path, help="write the table here; parts go to a folder of that name, so that an "
                        "interrupted run can continue")
    parser.add_argument("--epochs", type=int, help="of the decompositions; default: the run's own")
    parser.add_argument("--model", default="mini-gpt2", help="for attention: bundled name, folder or hub id "
                        "(default: %(default)s)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[3], help="for attention (default: 3)")
    parser.add_argument("--prompts", type=int, help="of each task, for attention (default: 48)")
    return run_command(_print_summary, parser.parse_args(arguments))


def _print_summary(options) -> None:
    """Print means over seeds, and save the table where wanted."""
    torch.set_num_threads(1)  # toys are tiny
    folder = options.out and options.out.with_suffix("")
    if options.name in runs.VARIANTS:
        table = runs.run(options.name, options.seeds or 5, folder, options.epochs)
    else:
        table = runs.run_real(options.name, options.model, options.blocks, options.seeds or 1, folder, options.epochs,
                              options.prompts)
    print("Errors: norm is |g - g^| / |g|, the paper's; squared its square, the reference implementation's. new_: on\n"
          "samples that training did not see. Means over seeds, with 95% t intervals.")
    print(runs.summary(table).T.to_string())
    if options.out:
        write_table(options.out, table)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
