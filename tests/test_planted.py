"""Compiled models: they compute their programs, their norms do nothing, and methods are judged against their edges."""

import numpy
import pandas
import pytest
import torch

import gimkit
from benchmarks.planted.__main__ import main
from benchmarks.planted.measure import average_precision, load, mib_auroc, task_of, truth_of
from benchmarks.planted.prompts import PROGRAMS
from gimkit.circuits import Circuit

torch.set_num_threads(1)


def answer(name, words):
    """The programs in plain Python: what the last position should say."""
    *before, last = words
    if name == "induction":
        return words[before.index(last) + 1]
    if name == "histogram":
        return str(words.count(last))
    if name == "reversal":
        return words[0]
    if name == "pattern":
        return str(before[-1:] == ["a"] and last == "b")
    if name == "brackets":
        return str(words.count("(") < words.count(")"))
    repeated = next(word for word in words if words.count(word) == 2 and word in "ABC")
    return next(word for word in words if word in "ABC" and word != repeated)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_model_computes_its_program(name):
    model = load(name)
    for clean, corrupt, good, bad in PROGRAMS[name].pairs(40, seed=5):
        for prompt, wanted in ((clean, good), (corrupt, bad)):
            assert answer(name, prompt.split()[1:]) == wanted
            logits = model._module(torch.tensor([model.tokenizer(prompt)["input_ids"]])).logits[0, -1]
            assert model.tokenizer.decode([int(logits.argmax())]) == wanted
    assert gimkit.tasks.card(model, task_of(name, model)).accuracy == 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_norms_are_the_identity(name):
    model, found = load(name), []
    for norm in (part for part in model._module.modules() if isinstance(part, torch.nn.LayerNorm)):
        norm.register_forward_hook(lambda module, given, out: found.append((out - given[0]).abs().max()))
    model._module(task_of(name, model, 4).clean)
    assert max(found) < 1e-4


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_circuit_runs_the_program_and_holds_no_spare_head(name):
    model, known = load(name), truth_of(name)
    task = task_of(name, model, 16, seed=2)
    heads = {edge.partition("->")[0] for edge in known.edges} | {edge.partition("->")[2] for edge in known.edges}
    layers, each = known.graph.layers, known.graph.heads
    spare = {f"a{layer}.h{head}" for layer in range(layers) for head in (each - 2, each - 1)} | {f"m{layers - 1}"}
    assert not {head.partition("<")[0] for head in heads} & spare
    whole = gimkit.run(model, task, Circuit(known.graph, known.graph.real))
    assert torch.allclose(gimkit.run(model, task, known), whole, atol=2e-2)
    assert (gimkit.run(model, task, Circuit(known.graph, ~known.keep & known.graph.real)) < whole.mean() / 2).all()


def literal_mib_auroc(scores, known):
    """The benchmark's loop, over Python sets; greedy growth from the logits edge by edge."""
    graph = known.graph
    names = {name: abs(float(scores.scores[place])) for name, place in graph.edges.items()}
    truth, points = set(known.edges), []
    for share in (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1):
        inside, open_edges, nodes = set(), {n for n in names if n.endswith("->logits")}, {"logits"}
        while len(inside) < share * len(names) and open_edges:
            best = max(sorted(open_edges, key=lambda n: graph.edges[n]), key=names.get)
            open_edges.remove(best)
            inside.add(best)
            source = best.partition("->")[0]
            if source not in nodes:
                nodes.add(source)
                open_edges |= {n for n in names if n.partition("->")[2].partition("<")[0] == source}
        points.append((len(inside & truth) / len(truth), len(inside - truth) / (len(names) - len(truth))))
    true, false = numpy.array(points).T
    return sum((false[i + 1] - false[i]) / false[-1] * (true[i] + true[i + 1]) / 2 for i in range(9))


def test_areas_against_plain_loops():
    known = truth_of("pattern")
    scores = gimkit.score_edges(load("pattern"), task_of("pattern", load("pattern"), 4), "random", seed=3)
    assert mib_auroc(scores, known) == pytest.approx(literal_mib_auroc(scores, known), abs=1e-6)
    order = sorted(known.graph.edges, key=lambda name: -abs(float(scores.scores[known.graph.edges[name]])))
    places = [i for i, name in enumerate(order) if name in set(known.edges)]
    wanted = sum((k + 1) / (place + 1) for k, place in enumerate(places)) / len(places)
    assert average_precision(scores, known) == pytest.approx(wanted)


def test_the_table_has_its_controls(tmp_path, capsys):
    """Exact patching finds the circuit, random scores do not."""
    csv = tmp_path / "planted.csv"
    assert main(["--methods", "exact", "random", "--seeds", "1", "--noises", "0", "--csv", str(csv)]) == 0
    table = pandas.read_csv(csv)
    exact, random = table[table.method == "exact"], table[table.method == "random"]
    assert (exact.auroc > 0.999).all() and (exact.average_precision > 0.999).all()
    assert random.average_precision.mean() < 0.3 and 0.2 < random.auroc.mean() < 0.8
    assert main(["--methods", "gmi"]) == 2
    assert "unknown method 'gmi'" in capsys.readouterr().err
