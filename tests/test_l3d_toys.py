"""L3D's toys, recovery, interventions and selection: known answers, formulas written out, controls that fail."""

import math

import numpy
import pandas
import pytest
import torch
from scipy import stats
from torch import nn

import gimkit
from benchmarks.l3d_runs import digits, runs
from benchmarks.l3d_runs.__main__ import main
from figures import l3d_heads
from gimkit import l3d
from gimkit.errors import GimkitError
from gimkit.l3d import interventions, language, recovery, selection, toys, tucker
from gimkit.l3d.gradients import chosen_parameters
from gimkit.l3d.selection import Activity
from gimkit.statistics import auroc


def orthogonal(features=4):
    """A toy whose circuits share no parameter: y = ReLU(x), each feature with a hidden unit of its own."""
    module = toys.Linear2(features, features, features).requires_grad_(False)
    module.W_in.copy_(torch.eye(features))
    module.W_out.copy_(torch.eye(features))
    return toys.Toy("tms", 0, module, None, 0.0)


@pytest.fixture(scope="module")
def recovered():
    """The orthogonal toy with five features, its planted circuits, and a decomposition of it."""
    toy = orthogonal(5)
    found = l3d.decompose(toy.module, toy.inputs(400), n=7, epochs=60, every=10, progress=False)
    return toy, found


def test_inputs_are_sparse_uniform_and_never_all_zero():
    for name, family in toys.FAMILIES.items():
        x = toys.samples(family, 20000, torch.Generator().manual_seed(0), family.copies)
        groups = (x != 0).unflatten(1, (-1, family.group))
        assert torch.equal(groups.any(2), groups.all(2)), name  # active together
        active = groups.any(2)
        assert bool(active.any(1).all())
        p, n = toys.ACTIVE, active.shape[1]
        assert float(active.float().mean()) == pytest.approx(p / (1 - (1 - p) ** n), rel=0.05)
        values = x[x != 0]
        assert values.min() >= (-1 if family.signed else 0) and values.max() <= 1
        assert float(values.mean()) == pytest.approx(0 if family.signed else 0.5, abs=0.02)


def test_toys_learn_and_a_seed_gives_the_same_ones():
    first, again = (toys.train("superposed", seeds=[0, 1], epochs=3, n=1000, tries=2) for _ in range(2))
    for a, b in zip(first, again):
        assert all(torch.equal(p, q) for p, q in zip(a.module.parameters(), b.module.parameters()))
    other = toys.train("superposed", seeds=[0], epochs=1, n=1000, tries=2)[0]
    assert first[0].loss < 0.95 * other.loss
    x = first[0].inputs(500)
    assert not torch.equal(first[0].inputs(500, seed=1), x) and not torch.equal(first[1].inputs(500), x)
    assert torch.equal(first[0].coefficients, other.coefficients) and first[0].coefficients.max() <= 3


def test_a_toy_trained_with_others_is_the_one_trained_alone():
    together, alone = (toys.train("squared", seeds=seeds, epochs=2, n=500, tries=2)[0] for seeds in ([3, 4], [3]))
    for a, b in zip(together.module.parameters(), alone.module.parameters()):
        assert torch.allclose(a, b, atol=1e-4)


def test_superposition_is_untied_and_copies_do_not_touch(tmp_path):
    one, three = (toys.train(name, seeds=[0], epochs=1, n=500, tries=1)[0] for name in ("tms", "tms x3"))
    assert torch.equal(one.module.W_out, one.module.W_in.T) and one.circuits == 5 and three.circuits == 15
    x = three.inputs(50)
    parts = [one.module(part) for part in x.split(5, dim=1)]
    assert torch.allclose(three.module(x), torch.cat(parts, 1), atol=1e-6)
    three.save(tmp_path / "toy")
    back = toys.Toy.load(tmp_path / "toy")
    assert torch.equal(back.module(x), three.module(x)) and (back.name, back.loss) == (three.name, three.loss)


def test_known_circuits_are_planted_where_they_are():
    toy = orthogonal(5)
    planted = dict(zip(chosen_parameters(toy.module), recovery.planted(toy)))
    for circuit in range(5):
        off = {name: part[circuit].clone() for name, part in planted.items()}
        off["W_in"][circuit, circuit] = off["W_out"][circuit, circuit] = off["b"][circuit] = 0
        assert sum(float(part.square().sum()) for part in off.values()) < 1e-8
        norm = sum(float(part[circuit].square().sum()) for part in planted.values())
        assert norm == pytest.approx(1, rel=1e-4)


def test_l3d_finds_orthogonal_circuits_and_random_directions_do_not(recovered):
    toy, found = recovered
    planted = recovery.planted(toy)
    cosines, which = recovery.match_circuits(found.decoder, planted)
    assert cosines.min() > 0.95 and len(set(which)) == 5
    assert recovery.random_cosines(found, planted).mean() < 0.6
    assert found.dead.sum() == 2 and not found.dead[which].any()
    new = l3d.activity(found, toy.module, toy.inputs(400, seed=1))
    assert new.squared < 0.1 and new.norm == pytest.approx(math.sqrt(new.squared))


def test_matching_is_one_to_one_and_best():
    shapes, ranks = [(3, 2), (3,)], [(1, 1), (1,)]
    directions = tucker.draw(shapes, ranks, 3, torch.Generator().manual_seed(0))
    circuits = [torch.stack([-2 * part[2], part[0]]) for part in
                (torch.stack(parts) for parts in zip(*(tucker.dense(directions, i) for i in range(3))))]
    cosines, which = recovery.match_circuits(directions, circuits)
    assert which == [2, 0] and cosines.tolist() == pytest.approx([1, 1], abs=1e-5)
    few = [tuple(part[:1] for part in factors) for factors in directions]
    cosines, which = recovery.match_circuits(few, circuits)
    assert which == [-1, 0] and cosines[0] == 0


def test_coefficients_are_read_from_paths():
    toy = toys.Toy("superposed", 0, toys.Linear2(3, 2, 3), torch.rand(3, 3), 0.0)
    core = torch.ones(3, 1, 1)
    w_in = (core, torch.eye(3).unsqueeze(1), torch.tensor([[[1.0, 0.5]]] * 3))  # subnetwork i reads feature i
    w_out = (core, torch.tensor([[[1.0, 1.0]]] * 3), torch.stack([2 * row[None] for row in toy.coefficients]))
    found = l3d.Decomposition(("W_in", "W_out", "b"), [], [w_in, w_out, (torch.zeros(3, 1), torch.zeros(3, 1, 3))],
                              torch.tensor([0.1, 0.0, 0.1]), torch.zeros(1, 2), {}, 0)
    guessed, true = runs.coefficients(found, toy)  # the dead one is left out
    assert numpy.allclose(guessed, 3 * toy.coefficients[[0, 2]]) and numpy.allclose(true, toy.coefficients[[0, 2]])
    assert runs.r_squared(guessed, true) == pytest.approx(1)
    assert runs.r_squared(guessed, true[::-1]) < 0.9


def test_moving_is_adding_to_the_weights(recovered):
    toy, found = recovered
    direction, x = found.subnetwork(2), toy.inputs(20, seed=5)
    other = toys.Linear2(5, 5, 5)
    other.load_state_dict({name: value + 0.7 * direction[name] for name, value in toy.module.state_dict().items()})
    assert torch.allclose(interventions.moved(toy.module, direction, 0.7, x), other(x))
    change = interventions.change(toy.module, direction, 0.7, x)
    assert torch.allclose(change, (other(x) - toy.module(x)).norm(dim=1))
    swept = interventions.sweep(toy.module, direction, [0.0, 0.7], x)
    assert bool((swept[0] == 0).all()) and torch.allclose(swept[1], (other(x) - toy.module(x)).abs().mean(0))
    part = interventions.restricted(direction, ["b"])
    assert list(part) == ["b"] and torch.equal(part["b"], direction["b"])
    with pytest.raises(GimkitError, match="no part of the direction"):
        interventions.restricted(direction, ["c"])
    control = interventions.random_like(direction, seed=3)
    assert interventions._norm(control) == pytest.approx(interventions._norm(direction)) == pytest.approx(1, rel=1e-4)


def test_a_circuit_moves_its_own_samples_and_a_random_direction_all(recovered):
    toy, found = recovered
    table = interventions.intervention_table(toy, found, deltas=(0.3, 1.0))
    table = table.groupby("direction")[["ratio", "auroc"]].mean()
    assert table.auroc["subnetwork"] > 0.9 and table.ratio["subnetwork"] > 5
    assert table.auroc["random"] < 0.65 and table.ratio["random"] < 2
    own = interventions.intervention_table(toy, found, deltas=(1.0,)).query("direction == 'subnetwork'")
    assert (own.own > 5 * own.others).all()



def test_auroc_is_the_share_of_pairs():
    scores, positive = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]), torch.tensor([True, False, True, False, False])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive].tolist() for b in scores[~positive].tolist()]
    assert auroc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(auroc(scores, positive & False))


def test_mutual_information_is_its_formula():
    kept, positive = torch.tensor([1.0, 0.5, 0.0, 0.0]), torch.tensor([True, True, False, False])
    joint = numpy.array([[1.5, 0.0], [0.5, 2.0]]) / 4  # kept or not, positive or not
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    want = sum(p * math.log2(p / q) for p, q in zip(joint.ravel(), apart.ravel()) if p)
    assert selection.mutual_information(kept, positive) == pytest.approx(want)
    assert selection.mutual_information(torch.full((4,), 0.5), positive) == pytest.approx(0)


def made_up_activity(seed, kinds):
    """Subnetwork 2 answers to kind "b"; the others to nothing."""
    noise = torch.rand(len(kinds), 4, generator=torch.Generator().manual_seed(seed))
    noise[:, 2] += torch.tensor([2.0 * (kind == "b") for kind in kinds])
    return Activity(noise, (noise > 1.5).float(), 0.5, 0.25)


def test_selection_finds_the_subnetwork_and_shuffled_labels_find_none():
    kinds, new = ["a", "b", "c", "c"] * 40, ["b", "a", "c", "c"] * 40
    table = selection.selection(made_up_activity(0, kinds), made_up_activity(1, new), kinds, new).set_index("kind")
    assert table.subnetwork["b"] == 2 and table.auroc["b"] == 1 and table.bits["b"] > 0.5
    assert abs(table.shuffled_auroc["b"] - 0.5) < 0.05 and table.shuffled_bits["b"] < 0.05
    assert table.auroc["c"] < 0.7


def test_task_samples_are_the_tasks_prompts_and_other_positions():
    model = gimkit.load("mini-gpt2")
    (embeddings, last), kinds = language.task_samples(model, n=3, names=("ioi", "capital"))
    assert kinds == ["ioi"] * 3 + ["elsewhere"] * 3 + ["capital"] * 3 + ["elsewhere"] * 3
    task = gimkit.tasks.ioi(model, n=3, seed=0)
    assert torch.equal(last[:3], task.last) and bool((last[3:6] < task.last).all()) and bool((last > 0).all())
    with torch.no_grad():
        logits = model._module(input_ids=task.clean).logits[torch.arange(3), task.last]
    assert torch.allclose(l3d.NextToken(model)(embeddings[:3], last[:3]), logits, atol=1e-4)


@pytest.mark.parametrize("name", ["mini-gpt2", "mini-llama"])
def test_a_block_of_attention_is_decomposed_and_judged(name):
    model = gimkit.load(name)
    found, table = language.attention_run(model, blocks=[1], prompts=4, n=4, names=("ioi", "capital"), epochs=2,
                                           progress=False)
    assert len(found.names) == 4 and all(".1." in parameter for parameter in found.names)
    assert set(table.kind) == {"ioi", "capital", "elsewhere"} and table.auroc.between(0, 1).all()
    assert table.norm[0] == pytest.approx(math.sqrt(table.squared[0]))
    shares = l3d_heads.head_shares(found, model)
    assert list(shares.columns) == [f"a1.h{h}" for h in range(4)] and shares.sum(axis=1).to_numpy() == pytest.approx(1)
    beside = l3d_heads.beside_gim(found, model, gimkit.tasks.ioi(model, n=4), table)
    assert len(beside) == 4 and beside.rho.between(-1, 1).all()


def test_shares_belong_to_the_head_whose_weights_move():
    for name, parameter, where, want in [
            ("mini-gpt2", "transformer.h.2.attn.c_attn.weight", (slice(None), slice(128 + 32, 128 + 64)), "a2.h1"),
            ("mini-gpt2", "transformer.h.2.attn.c_proj.weight", (slice(96, 128), slice(None)), "a2.h3"),
            ("mini-llama", "model.layers.3.self_attn.q_proj.weight", (slice(32, 64), slice(None)), "a3.h1"),
            ("mini-llama", "model.layers.3.self_attn.o_proj.weight", (slice(None), slice(64, 96)), "a3.h2")]:
        model = gimkit.load(name)
        direction = torch.zeros_like(dict(model._module.named_parameters())[parameter])
        direction[where] = 1

        class One:
            def __len__(self):
                return 1

            def subnetwork(self, _, parameter=parameter, direction=direction):
                return {f"model.{parameter}": direction}

        shares = l3d_heads.head_shares(One(), model)
        assert shares[want][0] == pytest.approx(1)
    direction = torch.zeros(64, 128)
    direction[:32] = 1  # the first of two shared keys: half each for the first two heads
    assert l3d_heads._by_head("model.layers.0.self_attn.k_proj.weight", direction, 4, 2) == [2048, 2048, 0, 0]
    with pytest.raises(GimkitError, match="do not know which head"):
        l3d_heads._by_head("model.layers.0.attention.query.weight", direction, 4, 4)
    with pytest.raises(GimkitError, match="block 7 has no parameters"):
        language.attention_names(l3d.NextToken(gimkit.load("mini-gpt2")), [7])


def test_the_digits_network_and_its_circuits():
    module, accuracy, order = digits.network(epochs=3)
    assert accuracy > 0.85 and len(order) == 1797
    found, table, _ = digits.digits_run(epochs=1, n=6, progress=False)
    assert found.names == ("3.weight", "3.bias") and list(table.kind) == list("0123456789")


def test_a_full_run_is_kept_part_by_part(tmp_path, monkeypatch):
    arguments = dict(seeds=2, folder=tmp_path, epochs=2, toy_epochs=1, progress=False)
    monkeypatch.setattr(toys, "train", lambda *given, train=toys.train, **more: train(*given, **more, n=300, tries=1))
    table = runs.run("superposed", **arguments)
    assert table.variant.unique().tolist() == list(runs.VARIANTS["superposed"])
    assert table.divergence.tolist() == ["mse"] * 4 + ["mse of the code"] * 4
    assert (table.norm <= 1.01).all() and table.new_norm.to_numpy() ** 2 == pytest.approx(table.new_squared.to_numpy())
    assert len(l3d.Decomposition.load(tmp_path / "superposed-paper-found")) == 10
    monkeypatch.setattr(toys, "train", None)  # nothing is trained again
    again = runs.run("superposed", **arguments)
    pandas.testing.assert_frame_equal(again, table, check_dtype=False, rtol=1e-4)
    for wrong, says in ((dict(name="tsm"), "unknown toy"), (dict(name="tms", variants=["x"]), "variant of tms")):
        with pytest.raises(GimkitError, match=says):
            runs.run(**arguments | wrong)


def test_the_command_prints_means_with_intervals_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toys, "train", lambda *given, train=toys.train, **more: train(*given, **more | {
        "epochs": 1, "n": 300, "tries": 1}))
    arguments = ["tms", "--seeds", "2", "--epochs", "1", "--out", str(tmp_path / "tms.csv")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    table = pandas.read_csv(tmp_path / "tms.csv")
    values = table[table.variant == "paper"].new_squared
    assert f"{values.mean():.3f} [" in printed and len(table) == 6
    low, high = stats.t.interval(0.95, 1, values.mean(), stats.sem(values))
    assert f"[{low:.3f}, {high:.3f}]" in printed
    monkeypatch.setattr(toys, "train", None)
    assert main(arguments) == 0 and capsys.readouterr().out == printed
    assert main(["attention", "--model", "mini-gtp2"]) == 2
    assert "mini-gpt2" in capsys.readouterr().err


def test_another_module_than_a_toy():
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    direction = {name: torch.ones_like(value) for name, value in module.named_parameters()}
    assert interventions.moved(module, direction, 0.0, torch.ones(4, 3)).shape == (4, 2)
