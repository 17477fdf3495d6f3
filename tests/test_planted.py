"""Models whose circuit is known, compiled and trained: they run their programs, methods are judged by their edges."""

import numpy
import pandas
import pytest
import torch

import gimkit
from benchmarks.planted import train
from benchmarks.planted.__main__ import main
from benchmarks.planted.aligned import ALIGNED
from benchmarks.planted.measure import (
    average_precision,
    load,
    mib_auroc,
    program_of,
    ranked,
    task_of,
    trained,
    truth_of,
)
from benchmarks.planted.prompts import PROGRAMS, START
from gimkit import statistics
from gimkit.circuits import Circuit, auroc

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
    values, hit = ranked(scores, known)
    assert average_precision(values, hit) == pytest.approx(wanted)
    assert statistics.auroc(values, hit) == pytest.approx(auroc(scores, known))


def test_pairs_of_nodes_count_once_by_their_largest_score():
    known, model = truth_of("induction-gpt2-0"), load("induction-gpt2-0")
    scores = gimkit.score_edges(model, task_of("induction-gpt2-0", model, 2), "random")
    best, true = {}, set()
    for name, place in known.graph.edges.items():
        pair = name.partition("<")[0]
        best[pair] = max(best.get(pair, 0.0), abs(float(scores.scores[place])))
        true |= {pair} if known.keep[place] else set()
    values, hit = ranked(scores, known, pairs=True)
    assert sorted(values.tolist()) == pytest.approx(sorted(best.values()))
    assert sorted(values[hit].tolist()) == pytest.approx(sorted(best[pair] for pair in true))
    assert true == {"input->a0.h1", "input->a1.h2", "a0.h1->a1.h2", "a1.h2->logits"}


def test_the_table_has_its_controls(tmp_path, capsys):
    """Exact patching finds the circuit, random scores do not."""
    csv = tmp_path / "planted.csv"
    assert main(["--methods", "exact", "random", "--seeds", "1", "--noises", "0", "--kinds", "compiled", "--csv",
                 str(csv)]) == 0
    table = pandas.read_csv(csv)
    exact, random = table[table.method == "exact"], table[table.method == "random"]
    assert (exact.auroc > 0.999).all() and (exact.average_precision > 0.999).all()
    assert random.average_precision.mean() < 0.3 and 0.2 < random.auroc.mean() < 0.8
    assert main(["--methods", "gmi"]) == 2
    assert "unknown method 'gmi'" in capsys.readouterr().err
    assert main(["--kinds", "grown"]) == 2
    assert "unknown kind 'grown'" in capsys.readouterr().err


def plain(name, words, patched):
    """The aligned programs in plain Python: {step: its values}; patched: {step: the values that it gets instead}."""
    found, here = {}, range(len(words))

    def step(key, values):
        return found.setdefault(key, patched.get(key, list(values)))

    if name == "induction":
        before = step("previous", [START, *words[:-1]])
        step("match", (["-", *(words[k] for k in here[:i + 1] if before[k] == words[i] != START)][-1] for i in here))
    elif name == "counts":
        opened, closed = (step(key, (words[:i + 1].count(word) for i in here))
                          for key, word in (("openings", "("), ("closings", ")")))
        step("more", ("opened" if a > b else "closed" if a < b else "equal" for a, b in zip(opened, closed)))
    elif name == "other-name":
        again = step("repeated", (word in words[:i] and word in "ABCDEF" for i, word in enumerate(words)))
        subject = step("subject", ([START, *(words[k] for k in here[:i + 1] if again[k])][-1] for i in here))
        step("other", (next((word for word in words[:i + 1] if word in "ABCDEF" and word != subject[i] != START), "-")
                       for i in here))
    else:
        digits = {START: 0} | {str(digit): digit for digit in range(4)}
        before = step("previous", [START, *words[:-1]])
        total = step("sum", ((digits[a] + digits[b]) % 4 for a, b in zip(words, before)))
        last = step("sum before", [0, *total[:-1]])
        step("more", ("up" if a > b else "down" if a < b else "same" for a, b in zip(total, last)))
    return found


@pytest.mark.parametrize("name", ALIGNED)
def test_an_aligned_program_and_its_interchanges_against_plain_python(name):
    program, n = ALIGNED[name], 40
    clean, corrupt = program.two_inputs(n, torch.Generator().manual_seed(1))
    texts = [[[START, *program.words][i] for i in row] for ids in (clean, corrupt) for row in ids.tolist()]
    values, other = program.values(corrupt), [plain(name, words, {}) for words in texts[n:]]
    for step in (None, *program.steps):
        patched = {step: (torch.ones(n, dtype=torch.bool), values[step])} if step else {}
        answers = program.answers(clean, patched)
        for words, given, row in zip(texts, other, answers.tolist()):
            wanted = [*plain(name, words, {step: given[step]} if step else {}).values()][-1]
            assert [[START, *program.words][i] for i in row[1:]] == wanted[1:], (words, step)


def test_trained_models_pass_their_checks_and_an_untrained_one_does_not():
    """Behaviour, interchange, strictness; the committed table says the same of each model."""
    table = pandas.read_csv(train.CHECKS).set_index(["model", "seed"])
    kept = table.index[table["kept"]]
    assert {f"{name}-{seed}" for name, seed in kept} == set(trained())
    assert len({name.rpartition("-")[0] for name, _ in kept}) >= 2
    for name, seed in kept:
        found = train.checks(load(f"{name}-{seed}")._module, name, n=1000)
        assert train.passed(found), (name, seed, found)
        for key, value in found.items():
            assert value == pytest.approx(table[key][name, seed], abs=0.03)
        untrained = train.checks(train.build(name, seed), name, n=300)
        assert untrained["interchange"] < 0.6 and not train.passed(untrained)


@pytest.mark.parametrize("name", ["induction-gpt2-0", "counts-llama-0"])
def test_a_patched_run_is_the_circuit_without_that_nodes_edges(name):
    """The training's own patching against gimkit's: cutting all edges from a node."""
    model, known = load(name), truth_of(name)
    task, places = task_of(name, model, 8), train.places_of(program_of(name))
    _, outputs = train.run(model._module, task.corrupt)
    for place in ("a0.h2", "m0", "a1.h2"):
        rows = torch.tensor([[row if each == place else -1 for each in places] for row in range(8)])
        logits = train.run(model._module, task.clean, rows, outputs)[0][:, -1]
        keep = known.graph.real.clone()
        keep[known.graph.sources.index(place)] = False
        good, bad = (torch.tensor(ids)[:, 0] for ids in (task.good, task.bad))
        wanted = logits[range(8), good] - logits[range(8), bad]
        assert torch.allclose(gimkit.run(model, task, Circuit(known.graph, keep)), wanted, atol=1e-4)


@pytest.mark.parametrize("name", sorted(trained()))
def test_edges_of_the_program_have_effects_and_others_have_not(name):
    """The circuit alone does the task, the rest does not; each edge of it matters more than any other."""
    model, known = load(name), truth_of(name)
    task = task_of(name, model, 64, seed=3)
    assert gimkit.tasks.card(model, task).accuracy > 0.98
    whole, circuit, rest = gimkit.run(model, task, [
        Circuit(known.graph, known.graph.real), known, Circuit(known.graph, known.graph.real & ~known.keep)])
    assert (circuit > 0).float().mean() > 0.95 and circuit.mean() > 0.4 * whole.mean() and rest.mean() < 0
    exact = gimkit.score_edges(model, task, "exact")
    values, hit = ranked(exact, known, pairs=True)
    assert values[hit].min() > values[~hit].max() and values[~hit].max() < 0.25 * whole.mean()
    order = torch.Generator().manual_seed(0)
    shuffled = [statistics.auroc(values, hit[torch.randperm(len(hit), generator=order)]) for _ in range(200)]
    assert abs(numpy.mean(shuffled) - 0.5) < 0.05


@pytest.mark.parametrize("name", ["counts-gpt2", "sums-llama"])
def test_a_seed_trains_the_same_weights(name):
    first, second, other = (train.train(name, seed, steps=3).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_training_keeps_only_what_passes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "FOLDER", tmp_path / "trained")
    monkeypatch.setattr(train, "CHECKS", tmp_path / "trained.csv")
    assert train.main(["counts-gpt2", "--seed", "3", "--steps", "1"]) == 0
    assert not (tmp_path / "trained").exists() and not pandas.read_csv(tmp_path / "trained.csv")["kept"].any()
    monkeypatch.setattr(train, "passed", lambda found: True)
    assert train.main(["counts-gpt2", "--seed", "3", "--steps", "1"]) == 0
    [row] = pandas.read_csv(tmp_path / "trained.csv").to_dict("records")
    assert row["kept"] and row["interchange"] < 0.9
    assert gimkit.load(str(tmp_path / "trained" / "counts-gpt2-3")).tokenizer.tokenize("( x") == ["(", "x"]
    assert train.main(["counts"]) == 2
    assert "unknown model 'counts'" in capsys.readouterr().err
