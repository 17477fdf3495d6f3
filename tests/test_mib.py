"""MIB's tasks from rows of its schemas, the command, and the folder to submit: small tokenizers, no hub."""

import json
import sys
from types import SimpleNamespace

import pandas
import pytest
import torch
from test_texts import byte_pairs, small

import gimkit
from benchmarks.mib import against_known, evaluate, main, submit
from benchmarks.mib_rows import MAKERS, made_rows
from gimkit.circuits import EdgeScores
from gimkit.circuits.faithfulness import SIZES
from gimkit.tasks import mib

torch.set_num_threads(1)
FIXED = {"operator": "+", "random_counterfactual": {"prompt": "4+3=", "label": 7}}


def sums(*extra):
    return [{"prompt": "2+3=", "label": 5} | FIXED, *extra]


@pytest.fixture(scope="module")
def model():
    return small(byte_pairs(chat=False, single=(" Mary", " John", " Anna")))


def reference(name, row, tokenizer):
    """What the benchmark's own reader makes of a row: prompts and the first tokens of its labels."""
    def first(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"][0]

    if name == "ioi":
        data = row["metadata"]
        return (row["prompt"], row["s2_io_flip_counterfactual"]["prompt"], first(f" {data['indirect_object']}"),
                first(f" {data['subject']}"))
    other = row["random_counterfactual" if name.startswith("arithmetic") else "symbol_counterfactual"]
    if name.startswith("arithmetic"):
        return row["prompt"], other["prompt"], first(str(row["label"])), first(str(other["label"]))
    return (row["prompt"], other["prompt"], first(row["choices"]["label"][row["answerKey"]]),
            first(str(other["choices"]["label"][other["answerKey"]])))


@pytest.mark.parametrize("name", MAKERS)
def test_rows_are_read_as_the_benchmark_reads_them(model, name):
    rows = made_rows(name, n=12)
    if name == "ioi":  # names that are one token here
        for row in rows:
            row["metadata"] = dict(indirect_object="Mary", subject="John", random_c="Anna")
    task, tokenizer = mib(name, model, data=rows, n=None), model.tokenizer
    wanted = {row["prompt"]: reference(name, row, tokenizer) for row in rows}
    assert len(task) > 1
    for i, pair in enumerate(task.pairs):
        clean, corrupt, good, bad = wanted[pair.clean]
        ids = task.clean[i][task.mask[i]].tolist()
        assert ids == [tokenizer.bos_token_id, *tokenizer(clean, add_special_tokens=False)["input_ids"]]
        assert task.corrupt[i][task.mask[i]].tolist()[1:] == tokenizer(corrupt, add_special_tokens=False)["input_ids"]
        assert (task.good[i], task.bad[i]) == ((good,), (bad,))
    assert set(made_rows(name, "train", 12)[0]) == set(rows[0])
    held_out = {row["prompt"] for row in made_rows(name, "validation", 12)}
    assert not held_out & set(wanted)


def test_answers_with_and_without_a_space(model):
    """A letter after a line break has no space; a name has one."""
    choice = mib("mcqa", model, data=made_rows("mcqa", n=4))
    assert {model.tokenizer.decode([ids[0]]) for ids in choice.good} <= set("ABCD")
    assert {model.tokenizer.decode([ids[0]]) for ids in choice.bad} <= set("1234")
    row = {"prompt": "Then Mary and John left, and John met", "metadata": {
        "indirect_object": "Mary", "subject": "John", "random_c": "Anna"},
        "s2_io_flip_counterfactual": {"prompt": "Then Mary and John left, and Mary met"}}
    ioi = mib("ioi", model, data=[row])
    assert model.tokenizer.decode([ioi.good[0][0], ioi.bad[0][0]]) == " Mary John"


def test_rows_left_out_are_counted(model):
    rows = sums({"prompt": "9-3=", "label": 6, "operator": "-", "random_counterfactual": {"prompt": "", "label": 1}},
                {"prompt": "9+3=", "label": 12} | FIXED,
                {"prompt": "1+1=", "label": 2, "operator": "+", "random_counterfactual": None},
                {"prompt": "10+1=", "label": 8} | FIXED,
                {"prompt": "3+4=", "label": 7} | FIXED)
    task = mib("arithmetic_addition", model, data=rows)
    assert len(task) == 1 and task[0].clean == "2+3="
    assert set(task.dropped) == {
        "1 rows with another operator than +", "1 rows with an answer of several tokens",
        "1 rows without a counterfactual", "1 rows whose clean and corrupt prompts have unequal numbers of tokens",
        "1 rows whose right and wrong answers start with the same token", "only 1 of 100 rows were found"}
    names = made_rows("ioi", n=1)[0]
    names["metadata"]["random_c"] = "Maximilian"
    names["metadata"].update(indirect_object="Mary", subject="John")
    with pytest.raises(gimkit.GimkitError, match="whose names or symbols have unequal numbers of tokens"):
        mib("ioi", model, data=[names])


def test_pairs_of_different_lengths_stand_in_one_batch(model):
    """Scores of a batch are those of each pair alone; one prompt has more than 200 tokens."""
    rows = sums({"prompt": "1+1=2\n" * 40 + "2+4=", "label": 6, "operator": "+", "random_counterfactual": {
        "prompt": "1+1=2\n" * 40 + "4+4=", "label": 8}})
    task = mib("arithmetic_addition", model, data=rows)
    assert task.mask.sum(1).tolist()[1] > 200
    both = gimkit.score_edges(model, task, "gim").scores
    alone = [gimkit.score_edges(model, mib("arithmetic_addition", model, data=[row]), "gim").scores for row in rows]
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, atol=1e-5 * both.abs().max())


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: mib("ioii", m), "unknown MIB task 'ioii'; use ioi, mcqa"),
    (lambda m: mib("ioi", m, split="dev"), "unknown split 'dev'"),
    (lambda m: mib("ioi", m, data=[{"prompt": "a"}]), "row 0: 'metadata' is missing .* mib-bench/ioi"),
    (lambda m: mib("ioi", m, data=["a"]), "a row is a dict of columns, not str"),
    (lambda m: mib("ioi", m, data="nowhere.jsonl"), "cannot read rows from nowhere.jsonl"),
    (lambda m: mib("ioi", m, data=[]), "no usable row for this tokenizer: no rows"),
    (lambda m: mib("arithmetic_addition", m, data=[sums()[0] | {"label": 15}]), "1 rows with an answer of several tok"),
])
def test_bad_input_gives_one_line(model, call, message):
    with pytest.raises(gimkit.GimkitError, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_a_bundled_model_does_not_know_the_answers():
    with pytest.raises(gimkit.GimkitError, match="with words that the tokenizer does not know"):
        mib("arithmetic_addition", gimkit.load("mini-llama"), data=sums())


def test_the_hub_is_asked_for_the_benchmarks_data(model, monkeypatch):
    asked = []

    def load_dataset(*place, **options):
        asked.append((place, options))
        return iter(made_rows("mcqa", n=3))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(mib("mcqa", model, split="validation", n=2)) == 2
    assert asked == [(("mib-bench/copycolors_mcqa", "4_answer_choices"), {"split": "validation"})]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(gimkit.GimkitError, match=r"mib-bench/ioi .* extra \[data\]"):
        mib("ioi", model)

    def gated(*place, **options):
        raise FileNotFoundError("mib-bench/ioi is a gated data set\nmore lines")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=gated))
    with pytest.raises(gimkit.GimkitError, match=r"gated data set\): check the network .*hf auth login"):
        mib("ioi", model)


def from_pt(path):
    """A submission read by the benchmark loader's rules, in plain Python: names of sources and targets, no gimkit."""
    data = torch.load(path, weights_only=True)
    config = data["cfg"]
    names, targets = ["input"], []
    for layer in range(config["n_layers"]):
        names += [f"a{layer}.h{head}" for head in range(config["n_heads"])] + [f"m{layer}"]
        targets += [f"a{layer}.h{head}<{read}>" for read in "qkv" for head in range(config["n_heads"])] + [f"m{layer}"]
    assert data["src_nodes"] == names and list(data["dst_nodes"]) == [*targets, "logits"]
    shape = len(names), len(targets) + 1
    assert data["edges_scores"].shape == data["edges_in_graph"].shape == shape
    assert data["nodes_in_graph"].shape == (shape[0],) and data["edges_in_graph"].dtype == torch.bool
    return data


@pytest.mark.parametrize("level", ["edge", "node"])
def test_the_command_scores_judges_and_writes_a_submission(model, level, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gpt"
    model._module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    for split in ("train", "validation"):
        rows = [row for seed, row in enumerate(made_rows("arithmetic_addition", split, 6))]
        (tmp_path / f"arithmetic_addition-{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    command = [str(folder), "--tasks", "arithmetic_addition", "--methods", "gim", "random", "--rows", str(tmp_path),
               "--level", level, "-n", "4", "--csv", "table.csv", "--submit", "out"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "arithmetic_addition, for circuits: 6 pairs of up to" in out
    table = pandas.read_csv("table.csv")
    assert table.method.tolist() == ["gim", "random"] and table.scored.eq(4).all() and table.evaluated.eq(6).all()
    assert table.cpr.notna().all() or "does not beat" in out
    cell = tmp_path / "out" / f"gim_{level}" / "importances" / "arithmetic-addition_gpt"
    data = from_pt(cell / "importances.pt")
    assert ("nodes_scores" in data) == (level == "node")
    total = EdgeScores.load(cell / "importances.pt").graph.n_edges if level == "edge" else None
    for ranking in ("signed", "absolute"):
        circuits = tmp_path / "out" / f"gim_{level}" / f"circuits-{ranking}" / "arithmetic-addition_gpt"
        names = sorted(path.stem for path in circuits.iterdir())
        assert names == sorted(["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"])
        for name in names if total else ():
            assert int(from_pt(circuits / f"{name}.pt")["edges_in_graph"].sum()) <= float(name) / 100 * total
    # A second run reads its parts; with other settings it says so, and measures again.
    monkeypatch.setattr("benchmarks.mib.measure", lambda *given: pytest.fail("measured again"))
    assert main(command) == 0
    capsys.readouterr()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="was measured with another .*prompts.*: it is measured again"):
        assert main([*command, "-n", "3"]) == 0


@pytest.mark.parametrize(("extra", "message"), [
    (["--tasks", "chess"], "unknown task 'chess'"), (["--methods", "gmi"], "unknown method 'gmi'"),
    (["--tasks", "mcqa", "--rows", "nowhere"], "cannot read rows from nowhere"),
    (["--rows", "made"], "no task has usable rows for this model"),
])
def test_the_commands_bad_input_gives_one_line(extra, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["mini-llama", *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gimkit: ") and message in error and error.count("\n") == 1


def test_areas_are_the_benchmarks(model):
    """CPR and CMD by the benchmark's loop over its sizes, on runs of the circuits themselves."""
    task = mib("arithmetic_addition", model, data=made_rows("arithmetic_addition", n=8))
    if gimkit.tasks.card(model, task).logit_difference < 0:  # a random model: make its answers the right ones
        task = gimkit.tasks.Task(task.name, task.corrupt, task.clean, task.mask, task.bad, task.good, task.pairs)
    edges = gimkit.score_edges(model, task, "gim")
    found = evaluate(model, edges, task)
    sizes = (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1)
    whole = gimkit.run(model, task, edges.top(edges.graph.n_edges)).mean()
    none = gimkit.run(model, task, edges.top(0)).mean()
    for area, absolute in (("cpr", False), ("cmd", True)):
        faith = [(float(gimkit.run(model, task, edges.top(int(s * edges.graph.n_edges), absolute=absolute)).mean())
                  - float(none)) / float(whole - none) for s in sizes]
        faith = faith if area == "cpr" else [abs(1 - f) for f in faith]
        wanted = sum((b - a) * (faith[i] + faith[i + 1]) / 2 for i, (a, b) in enumerate(zip(sizes, sizes[1:])))
        assert found[area] == pytest.approx(wanted, rel=1e-3)


def test_submission_of_edges_names_its_folders(model, tmp_path):
    task = mib("arithmetic_addition", model, data=sums())
    submit(gimkit.score_edges(model, task, "random"), tmp_path, "arithmetic-addition_gpt2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circuits-absolute", "circuits-signed", "importances"]


def test_submitted_circuits_of_nodes_have_the_sizes_that_faithfulness_runs(tmp_path):
    """Shares of heads and MLPs: the embedding does not count."""
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=4)
    nodes = gimkit.score_nodes(model, task, "random")
    sizes = tuple(share for share in SIZES if share < 1)
    ran = gimkit.faithfulness(model, task, nodes, absolute=True, sizes=sizes)
    submit(nodes, tmp_path, "ioi_mini")
    for share, kept in zip(sizes, ran.edges):
        assert len(gimkit.circuits.Circuit.load(tmp_path / f"circuits-absolute/ioi_mini/{100 * share:g}.pt")) == kept


def test_faithfulness_of_nodes_runs_their_circuits(model):
    """Against each circuit of the best nodes, run by itself."""
    task = mib("arithmetic_addition", model, data=made_rows("arithmetic_addition", n=8))
    nodes, sizes = gimkit.score_nodes(model, task, "gradient"), (0.25, 0.5, 1.0)
    try:
        curve = gimkit.faithfulness(model, task, nodes, absolute=True, sizes=sizes)
    except gimkit.GimkitError:  # a random model: turn the task around
        task = gimkit.tasks.Task(task.name, task.corrupt, task.clean, task.mask, task.bad, task.good, task.pairs)
        curve = gimkit.faithfulness(model, task, nodes, absolute=True, sizes=sizes)
    for share, values in zip(sizes, curve.per_example):
        circuit = nodes.top(int(share * (len(nodes.nodes) - 1)), absolute=True)
        assert torch.allclose(values, gimkit.run(model, task, circuit), atol=1e-5)
    assert torch.allclose(curve.per_example[-1], curve.full, atol=1e-4)
    with pytest.raises(gimkit.GimkitError, match="greedy circuits grow along scores of edges"):
        gimkit.faithfulness(model, task, nodes, absolute=True, greedy=True)


def test_the_kits_tasks_and_the_circuits_found_by_hand(tmp_path, monkeypatch, capsys):
    """EAP-GP's table: no circuit is known of mini-llama; on GPT-2 small's shape a perfect score finds all of it."""
    monkeypatch.chdir(tmp_path)
    command = ["mini-llama", "--rows", "kit", "--tasks", "ioi", "--methods", "gp", "-n", "4", "--csv", "table.csv"]
    assert main(command) == 0
    assert "ioi, for circuits: 4 pairs" in capsys.readouterr().out
    table = pandas.read_csv("table.csv")
    assert table.cmd.notna().all() and "auroc" not in table
    circuit = gimkit.circuits.known.ioi()
    perfect = EdgeScores("ioi", "gim", circuit.graph, circuit.keep.double())
    assert against_known(perfect, "ioi") == {"auroc": 1.0, "precision": 1.0}
    worst = EdgeScores("ioi", "gim", circuit.graph, (circuit.graph.real & ~circuit.keep).double())
    assert against_known(worst, "ioi") == {"auroc": 0.0, "precision": 0.0}
