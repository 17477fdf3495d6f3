"""The command line, `python -m gimkit --help`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import gimkit
from gimkit.errors import GimkitError, check_known
from gimkit.model import gguf
from gimkit.model.load import BUNDLED
from gimkit.notebook.demo import demo

REAL = "smollm2-135m"
PROMPTS = 3  # that an explorer's file shows
TASKS = ("ioi", "greater_than", "agreement", "pronoun", "capital", "hypernymy", "odd_one_out", "induction", "ioi_twice")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input gives one line on standard error and exit code 2.

    >>> main(["demo", "--model", "mini-lama"])               # the message goes to stderr
    Loading mini-lama ...
    2

    Args:
        arguments: of the command line; those of the process when None.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser("python -m gimkit", description="GIM's gradients on nnsight models.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    command = commands.add_parser("demo", help="show GIM at work on one model, and draw figures/ (no network)")
    command.add_argument("--model", help=f"bundled name, folder or hub id (default: {REAL} where its package is "
                         "installed, else mini-llama)")
    command.set_defaults(run=lambda options: demo(options.model))

    command = commands.add_parser("explore", help="a circuit to click through, as one HTML file that loads nothing")
    command.add_argument("model", metavar="NAME", help="a bundled name, a folder or a hub id")
    command.add_argument("--task", default="ioi", help="one of gimkit.tasks (default: %(default)s)")
    command.add_argument("--method", default=["gim"], nargs="+", help="one or several of score_edges, which the page "
                         "switches between (default: gim)")
    command.add_argument("-n", type=int, default=16, help="prompt pairs for the scores, and as many others to evaluate "
                         "circuits (default: %(default)s)")
    command.add_argument("--out", type=Path, required=True, help="the .html file")
    command.set_defaults(run=_explore)

    command = commands.add_parser("check", help="will runs on a server work? versions, key, server, model")
    command.add_argument("model", metavar="NAME", help="a hub id, a folder or a bundled name")
    command.add_argument("--remote", default=True, help="a server's address (default: the configured one)")
    command.set_defaults(run=lambda options: gimkit.check(gimkit.load(options.model, remote=True), options.remote))

    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 2
    if options.model is None:
        options.model = default_model()
    return run_command(options.run, options)


def run_command(run: Callable, options: argparse.Namespace) -> int:
    """Run a command with its options, and return the exit code: 0, or 2 after one line on standard error.

    >>> run_command(lambda options: None, None)
    0
    """
    if getattr(options, "model", None) in BUNDLED:
        torch.set_num_threads(1)  # models this small are slower with several threads
    try:
        run(options)
    except (GimkitError, OSError) as error:
        print(f"gimkit: {error}", file=sys.stderr)
        return 2
    return 0


def default_model() -> str:
    """The real model where its package is installed, else a bundled one and a line that says so."""
    if gguf.is_here(REAL):
        return REAL
    print(f"The real model {REAL} is not installed ({gguf.PACKAGED[REAL].command}): this runs on a small bundled one.")
    return "mini-llama"


def _explore(options: argparse.Namespace) -> None:
    """Write the circuit explorer of one task as an HTML file."""
    check_known("task", options.task, TASKS)
    model = gimkit.load(options.model)
    drawn = getattr(gimkit.tasks, options.task)(model, n=2 * options.n, seed=0)
    scored, evaluated = drawn[:len(drawn) // 2], drawn[len(drawn) // 2:]
    views = {}
    for method in options.method:
        edges = gimkit.score_edges(model, scored, method)
        views[method] = edges, [gimkit.faithfulness(model, evaluated, edges, absolute=absolute)
                                for absolute in (True, False)]
    # Effects take runs of their own for each head, hours for hundreds: those of the strongest edges have them.
    best = [edges.top(min(100, edges.graph.n_edges), absolute=True) for edges, _ in views.values()]
    heads = {name for circuit in best for name in circuit.nodes if name[0] == "a"}
    roles = gimkit.circuits.head_roles(model, scored, heads=sorted(heads) or None).set_index("node")["role"]
    print(f"wrote {gimkit.explore(model, scored[:PROMPTS], views, roles=roles).save(options.out)}")
