"""The papers' figures: what is drawn is what was measured, parts are kept, reruns give equal bytes."""

import numpy
import pandas
import pytest
import torch

import gimkit
from benchmarks.compare import compare
from benchmarks.compare import curves as compared_curves
from benchmarks.ladder import LADDER
from figures import FIGURES, draw, edges, ioi, layers, measured, papers, parts, repair, tokens
from figures.__main__ import main
from figures.parts import Request
from gimkit.circuits import Circuit
from gimkit.plots.style import _write_caption
from gimkit.tokens import layers as layerwise

TEMPERATURES = [tokens.at_temperature(t) for t in tokens.TEMPERATURES]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(methods, tasks=("ioi", "agreement"), n=6):
    """Made-up values per prompt; the second method is 0.25 better than the first everywhere."""
    noise = numpy.random.default_rng(0).uniform(size=(len(tasks), n))
    return pandas.concat([pandas.DataFrame({
        "task": task, "method": method, "example": range(n), "comprehensiveness": noise[t] + 0.25 * m,
        "sufficiency": noise[t] - 0.25 * m}) for t, task in enumerate(tasks) for m, method in enumerate(methods)])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_toy_has_the_numbers_of_its_formulas(tmp_path):
    assert draw(["toy"]) == [parts.FOLDER / "toy.png"]
    found = pandas.read_csv("figures/data/toy.csv").set_index(["row", "by", "lowered"]).effect
    for name, (a, c) in repair.TOYS.items():
        a, c = (torch.tensor(x, dtype=torch.float64) for x in (a, c))
        lowered = a.clone()
        lowered[:2] = a.mean()
        assert found[name, "truth", "both"] == pytest.approx(float(a.softmax(0) @ c - lowered.softmax(0) @ c), rel=1e-4)
    twice = found["two that say the same"]
    assert twice["truth", "first"] == pytest.approx(0.035, abs=5e-4)  # the numbers of the protocol
    assert twice["truth", "both"] == pytest.approx(1.161, abs=5e-4)
    assert twice["gradient", "both"] == pytest.approx(2 * 0.018 * 3.6, rel=0.03)  # the slope, times the distance
    assert twice["gradient, T = 2", "both"] == pytest.approx(2 * 0.323 * 3.6, rel=0.01)
    assert found["one alone", "truth", "first"] == pytest.approx(5.366, abs=5e-4)
    before = files(tmp_path / "figures")
    assert {path.rpartition(".")[2] for path in before} == {"png", "svg", "md"}
    draw(["toy"])
    assert files(tmp_path / "figures") == before


def test_intervals_are_means_over_prompts_and_differences_are_paired():
    table = rows(["gradient", "gim"])
    found = tokens.intervals(table).set_index(["method", "task", "measure"])
    own = table[(table.method == "gim") & (table.task == "ioi")].comprehensiveness
    assert found.loc[("gim", "ioi", "comprehensiveness"), "value"] == pytest.approx(own.mean())
    everything = found.loc[("gim", tokens.POOLED, "comprehensiveness")]
    assert everything.n == 12 and everything.low < everything.value < everything.high
    ahead = tokens.intervals(table, minus="gradient").set_index(["method", "task", "measure"])
    for measure, sign in (("comprehensiveness", 1), ("sufficiency", -1)):
        difference = ahead.loc[("gim", tokens.POOLED, measure)]
        assert difference[["value", "low", "high"]].tolist() == pytest.approx([0.25 * sign] * 3)


def test_undefined_prompts_are_left_out_and_counted():
    table = rows(["gim"]).reset_index(drop=True)
    table.loc[0, "comprehensiveness"] = numpy.nan
    table.loc[table.task == "agreement", "comprehensiveness"] = numpy.nan
    found = tokens.intervals(table).set_index(["task", "measure"])
    assert found.loc[("ioi", "comprehensiveness"), "n"] == 5
    assert numpy.isnan(found.loc[("agreement", "comprehensiveness"), "value"])
    assert found.loc[("agreement", "sufficiency"), "n"] == 6


def test_the_sweep_draws_a_line_per_task_and_the_mean_with_intervals():
    frame = tokens.intervals(rows(TEMPERATURES))
    frame["temperature"] = frame.method.map(dict(zip(TEMPERATURES, tokens.TEMPERATURES)))
    left, right = papers.temperature_sweep(frame, tokens.POOLED).axes
    want = frame[(frame.task == "ioi") & (frame.measure == "comprehensiveness")]
    line = next(line for line in left.lines if line.get_label() == "ioi")
    assert line.get_xdata() == pytest.approx(tokens.TEMPERATURES) and line.get_ydata() == pytest.approx(want.value)
    assert "sufficiency" in right.get_ylabel() and right.get_xscale() == "log"


def test_the_ladder_draws_a_dot_per_task_and_rule_set():
    frame = tokens.intervals(rows(list(LADDER)), minus="gradient").query("method != 'gradient'")
    left, _ = papers.ladder(frame, tokens.POOLED).axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(LADDER)[1:]
    dots = next(dots for dots in left.collections if dots.get_label() == "ioi").get_offsets()
    assert numpy.asarray(dots[:, 0]) == pytest.approx(0.25 * numpy.arange(1, 8))


def test_the_table_names_the_best_of_each_column_and_what_ties_with_it():
    frame = tokens.intervals(rows(["gradient", "gim"]))
    widened = frame.assign(low=-9.0, high=9.0)
    assert all(text.get_fontweight() == "bold" for ax in papers.faithfulness_table(widened, tokens.POOLED).axes
               for text in ax.texts)
    frame = frame.assign(low=frame.value, high=frame.value)
    for ax in papers.faithfulness_table(frame, tokens.POOLED).axes:
        bold = [text.get_position()[1] for text in ax.texts if text.get_fontweight() == "bold"]
        assert bold == [1.5] * 3  # the second method in both tasks and in their mean


def test_shuffled_scores_are_the_same_scores_elsewhere():
    scores = gimkit.attribute(gimkit.load("mini-llama"), "Mary drove to the farm with John. John lent a map to", "Mary")
    found = tokens.shuffled_scores(scores, 0)
    assert found.scores.sort().values.tolist() == scores.scores.sort().values.tolist()
    assert not torch.equal(found.scores, scores.scores)
    assert torch.equal(tokens.shuffled_scores(scores, 0).scores, found.scores)
    assert not torch.equal(tokens.shuffled_scores(scores, 1).scores, found.scores)


@pytest.mark.parametrize("method", ["gradient", "gim", "random", "ig-20", "T=5"])
def test_measured_with_the_library(method):
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.agreement(model, n=2)
    found = tokens.measure(model, task, method, seed=3).query("scale == 'logit'")
    options = {"ig-20": {"method": "ig"}, "T=5": {"method": gimkit.RULES["gim"]._replace(temperature=5)}}.get(
        method, {"method": method})
    prompts, targets = [pair.clean for pair in task.pairs], [pair.answer for pair in task.pairs]
    scores = [gimkit.attribute(model, *both, **options, seed=6 + i) for i, both in enumerate(zip(prompts, targets))]
    want = gimkit.tokens.token_faithfulness(model, prompts, scores, targets)
    assert found.comprehensiveness.to_numpy() == pytest.approx(want.comprehensiveness().numpy())
    assert found.sufficiency.to_numpy() == pytest.approx(want.sufficiency().numpy())


def test_of_many_right_answers_the_likeliest_is_explained():
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.greater_than(model, n=3)
    prompts, targets = tokens.prompts_of(model, task)
    for ids, target, good in zip(prompts, targets, task.good):
        with torch.no_grad():
            logits = model._module(input_ids=ids[None]).logits[0, -1]
        assert target in good and logits[target] == pytest.approx(float(logits[list(good)].max()), rel=1e-4)


def test_a_run_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    done = []

    def measure(model, task, method, seed):
        return rows([method], [task.name], len(task)).assign(scale="logit")

    def cut_off(model, task, method, seed):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((task.name, method))
        return measure(model, task, method, seed)

    monkeypatch.setattr(tokens, "measure", cut_off)
    arguments = dict(n=2, tasks=["agreement", "pronoun"])
    with pytest.raises(KeyboardInterrupt):
        draw(["ablation-ladder"], **arguments)
    kept = files(tmp_path / "runs/figures/mini-llama/tokens")
    assert len(kept) == 3 and not list((tmp_path / "figures").glob("*.png"))
    monkeypatch.setattr(tokens, "measure", lambda *given: done.append(given[2]) or measure(*given))
    draw(["ablation-ladder"], **arguments)
    assert len(done) == 16  # eight rule sets on two tasks, each once
    assert kept.items() <= files(tmp_path / "runs/figures/mini-llama/tokens").items()
    drawn = files(tmp_path / "figures")
    draw(["ablation-ladder"], **arguments)
    assert len(done) == 16 and files(tmp_path / "figures") == drawn
    draw(["ablation-ladder"], n=1, tasks=["pronoun"])
    assert len(done) == 24  # other prompts: nothing is reused


def test_the_same_seed_gives_the_same_bytes_measured_anew(tmp_path, monkeypatch):
    names, found = ["ablation-effect", "grad-vs-tsg"], []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        draw(names, n=2, tasks=["ioi"])
        found.append(files(tmp_path / folder / "figures"))
    assert found[0] == found[1] and len(found[0]) == 5


def test_the_scatters_hold_the_librarys_rows():
    draw(["ablation-effect"], n=2, tasks=["ioi_twice"])
    model = gimkit.load("mini-llama")
    want = gimkit.self_repair(model, gimkit.tasks.ioi_twice(model, n=2)).frame()
    found = pandas.read_csv("figures/data/ablation-effect-mini-llama.csv")
    assert found.x.to_numpy() == pytest.approx((want.d1 + want.d2).to_numpy(), rel=1e-4, abs=1e-9)
    assert found.y.to_numpy() == pytest.approx(want.d12.to_numpy(), rel=1e-4, abs=1e-9)
    assert found.flagged.tolist() == want.flagged.astype(int).tolist()


def test_changed_weights_are_measured_anew():
    first, other = Request("mini-llama", n=2), Request("mini-llama", n=2)
    with torch.no_grad():
        next(iter(other.model._module.parameters())).add_(1)
    given = iter([1.0, 2.0, 3.0])
    values = [request.part("x", request.task("ioi"), "y", lambda: pandas.DataFrame({"v": [next(given)]})).v[0]
              for request in (first, first, other)]
    assert values == [1.0, 1.0, 2.0]


def test_layers_are_measured_with_the_library_and_drawn():
    draw(["layers"], n=2, tasks=["pronoun"])
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.pronoun(model, n=2)
    prompts, targets = [pair.clean for pair in task.pairs], [pair.answer for pair in task.pairs]
    scores = [layerwise.layer_scores(model, *both, method="gradient") for both in zip(prompts, targets)]
    want = layerwise.layer_faithfulness(model, prompts, scores, targets)
    found = pandas.read_csv("figures/data/layers-mini-llama.csv").query("task == 'pronoun' and method == 'gradient'")
    for measure in tokens.MEASURES:
        values = [float(getattr(layer, measure)().mean()) for layer in want]
        assert found[found.measure == measure].value.tolist() == pytest.approx(values, rel=1e-4, abs=1e-6)
    frame = pandas.read_csv("figures/data/layers-mini-llama.csv").query("task == @tokens.POOLED")
    left, _ = papers.layers(frame).axes
    assert [line.get_label() for line in left.lines] == list(layers.METHODS.values())


def test_the_path_runs_from_the_corrupt_to_the_clean_prompt():
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=2)
    found = edges.path(model, task).set_index(["example", "share"])
    weight = model._module.get_input_embeddings().weight.detach()
    for i, pair in enumerate(task.pairs):
        real = task.mask[i]
        start, end = weight[task.corrupt[i][real]], weight[task.clean[i][real]]
        for share in (0.0, 0.5, 1.0):
            x = (start + share * (end - start)).requires_grad_(True)
            logits = model._module(inputs_embeds=x[None]).logits[0, -1]
            metric = logits[task.good[i][0]] - logits[task.bad[i][0]]
            metric.backward()
            want = float(metric.detach()), float(x.grad.norm())
            assert found.loc[(i, share)].tolist() == pytest.approx(want, rel=1e-3), pair


def test_eap_gp_figures_show_the_benchmarks_numbers(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    runs = compare("mini-llama", ["capital"], ["gradient", "gp", "random"], n=2, seeds=2)
    curves = compared_curves(runs)
    curves.to_csv("benchmarks/compare-mini-llama-curves.csv", index=False)
    runs[["task", "seed", "method", "cpu_seconds"]].drop_duplicates().to_csv("benchmarks/compare-mini-llama.csv")
    draw(["eap-gp-faithfulness", "eap-gp-runtime"])
    found = pandas.read_csv("figures/data/eap-gp-faithfulness-mini-llama.csv")
    for method, name in (("gradient", "EAP"), ("gp", "EAP-GP")):
        want = curves[(curves.method == method) & (curves.ranking == "absolute")].faithfulness
        assert found[found.method == name].faithfulness.tolist() == pytest.approx(want.tolist(), rel=1e-3, abs=1e-5)
    assert set(found.method) == {"EAP", "EAP-GP"}
    times = pandas.read_csv("figures/data/eap-gp-runtime-mini-llama.csv").set_index("method")
    assert times.ratio["EAP"] == 1
    assert times.ratio["EAP-GP"] == pytest.approx(times.cpu_seconds["EAP-GP"] / times.cpu_seconds["EAP"], rel=1e-4)


def test_captions_of_other_figures_stay(tmp_path):
    path = tmp_path / "CAPTIONS.md"
    for stem in ("b", "a", "b"):
        _write_caption(tmp_path / stem, {"Shows": f"What {stem} shows.", "Paper": "Paper."})
    text = path.read_text()
    assert text.count("## a\n") == text.count("## b\n") == 1 and text.index("## a") < text.index("## b")
    assert "![a](a.png)" in text and "What a shows." in text and "- **Paper:** Paper." in text


@pytest.mark.parametrize(("arguments", "listed"), [
    (["toi"], "temperature-sweep"), (["toy", "--tasks", "iio"], "greater_than"), (["toy", "--tasks"], None)])
def test_unknown_names_are_one_line_that_lists_the_known(arguments, listed, tmp_path, capsys):
    if listed is None:
        with pytest.raises(SystemExit):
            main(arguments)
        return
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "unknown" in error and listed in error
    assert not list(tmp_path.iterdir())


def test_every_figure_says_what_it_corresponds_to():
    for named in FIGURES.values():
        assert "arXiv" in named.paper and named.differs.endswith(".")


def test_random_weights_have_no_self_repair_and_the_trained_model_has():
    figure, frame, text = repair.control(Request("mini-llama", n=4))
    trained, random = (frame[frame.weights == kind] for kind in ("trained", "random"))
    assert len(trained) > 10 < len(random)
    assert (trained.d12 > trained.d1 + trained.d2).mean() > 0.7 and trained.interaction.median() > 0.3
    assert abs(random.interaction.median()) < 0.1 and "random weights: " in text and len(figure.axes) == 2


def test_heads_that_are_repaired_are_drawn():
    request = Request("mini-llama", n=3)
    figure, frame, text = repair.heads(request)
    rows = frame.dropna(subset="direct").set_index("ablated")
    assert len(rows) == 20 and len(figure.axes) == 3
    chosen = [ax.get_title() for ax in figure.axes[1:]]
    strong = rows.direct.abs().nlargest(8).index
    made_up_for = (rows.direct - rows.total)[strong] * numpy.sign(rows.direct[strong])
    for head, title in zip(made_up_for.nlargest(2).index, chosen):
        assert title == f"What compensates for {head} on ioi" and f"{head}: direct" in text
        own = frame[(frame.ablated == head) & frame.part.notna()]
        assert own.compensation.sum() == pytest.approx(rows.repaired[head], abs=1e-4)


def test_steps_without_the_right_heads_carry_nothing():
    """A step between classes that do not exist cuts nothing; heads by name, their controls by layer."""
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=3)
    none = ioi.steps_of(model, task, {}, 0)
    assert none.lost.tolist() == pytest.approx([0] * len(ioi.STEPS), abs=1e-5)
    some = ioi.steps_of(model, task, {"S-inhibition": ["a0.h1"], "suppressor": ["a2.h2"]}, 0).set_index("step")
    graph = gimkit.score_edges(model, task, "random").graph
    keep = graph.real.clone()
    keep[graph.sources.index("a0.h1"), graph.targets.index("a2.h2<q>")] = False
    ends = [Circuit(graph, one) for one in (graph.real, torch.zeros_like(graph.real), keep)]
    full, empty, cut = gimkit.run(model, task, ends).mean(1).tolist()
    assert some.lost["S-inhibition to movers, queries"] == pytest.approx((full - cut) / (full - empty), abs=1e-4)


def test_attention_at_the_repeated_name():
    model = gimkit.load("mini-llama")
    task = gimkit.tasks.ioi(model, n=3)
    found = ioi.attention_at_repeat(model, task).set_index("node")
    with model.trace(input_ids=task.clean[:1], use_cache=False):
        layer = model.model.layers[2].self_attn
        call = layer.source.attention_interface_1
        q, k = call.inputs[0][1].save(), call.inputs[0][2].save()
    ids = task.clean[0].tolist()
    first, last = [place for place, token in enumerate(ids) if token == task.bad[0][0]]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    single = ioi.attention_at_repeat(model, task[:1]).set_index("node")
    for head in range(4):
        row = torch.softmax(q[0, head, last] @ k[0, head, :last + 1].T * q.shape[-1] ** -0.5, -1)
        assert single.of_duplicate[f"a2.h{head}"] == pytest.approx(float(row[first]), abs=1e-5)
        assert single.of_induction[f"a2.h{head}"] == pytest.approx(float(row[first + 1]), abs=1e-5)
    assert found.of_duplicate.between(0, 1).all()


def test_known_circuits_are_drawn_with_means_over_programs(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    values = {"induction": 0.6, "counts": 0.8}
    pandas.DataFrame([{"kind": kind, "program": program, "seed": seed, "method": method, "auroc": 0.9,
                       "mib_auroc": 0.9, "average_precision": values[program] + 0.1 * seed}
                      for kind in ("compiled", "trained") for method in ("gim", "random") for program in values
                      for seed in (0, 1)]).to_csv(tmp_path / "benchmarks" / "planted.csv")
    assert draw(["planted"]) == [parts.FOLDER / "planted.png"]
    frame = pandas.read_csv("figures/data/planted.csv")
    assert frame["average_precision"].tolist() == pytest.approx([0.75] * 4)  # of .65 and .85
    assert (frame["average_precision_low"] < 0.75).all() and (frame["average_precision_high"] > 0.75).all()
    text = (tmp_path / "figures" / "CAPTIONS.md").read_text()
    assert "gim on trained models: AUROC 0.90, average precision 0.75" in text
    assert "models of benchmarks/planted" in text


def test_what_benchmarks_measured_is_drawn_from_their_files(tmp_path):
    with pytest.raises(gimkit.GimkitError, match="compare-mini-llama-mean.csv is missing"):
        draw(["one-pass-or-five"])
    (tmp_path / "benchmarks").mkdir()
    ends = {f"{area}{end}": value for area, value in (("cpr", 1.2), ("cmd", 0.1)) for end in ("", "_low", "_high")}
    leads = {"cpr_ahead_low": 0.1, "cpr_ahead_high": 0.3, "cmd_ahead_low": -0.1, "cmd_ahead_high": 0.1}
    pandas.DataFrame([{"task": task, "method": method} | ends | leads for task in ("ioi", "capital")
                      for method in ("gim", "gradient", "ig-inputs")]).to_csv(
                          tmp_path / "benchmarks" / "compare-mini-llama-mean.csv")
    draw(["one-pass-or-five"])
    text = (tmp_path / "figures" / "CAPTIONS.md").read_text()
    assert "by CPR one GIM pass is better than five of EAP-IG on ioi, capital, worse on none" in text
    assert "by CMD one GIM pass is better than five of EAP-IG on none, worse on none" in text
    rows = [(method, statistic, 0.5) for method in measured.BY_DEPTH
            for statistic in (*measured.FIFTHS, *measured.RANKS)]
    pandas.DataFrame(rows, columns=["method", "statistic", "value"]).assign(task="ioi").to_csv(
        tmp_path / "benchmarks" / "nodes-mini-llama.csv")
    draw(["nodes-by-depth"])
    assert "gim: sizes 0.50, 0.50, 0.50, 0.50, 0.50, Spearman 0.50" in (tmp_path / "figures/CAPTIONS.md").read_text()
