"""Each exercise: its stub gets "Your turn", its folded solution passes, plausible wrong answers hear why."""

import runpy
from collections import Counter

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from scipy import stats
from test_notebooks import PATHS, exercises

import gimkit
from gimkit.interventions.gradients import scale_grad, with_grad_of
from gimkit.model.architecture import architecture_of
from gimkit.notebook import checks
from gimkit.statistics import bootstrap

EXERCISES = [(path.stem[:2], exercise) for path in PATHS for exercise in exercises(path)]
each_exercise = pytest.mark.parametrize("number, exercise", EXERCISES, ids=[e.name for _, e in EXERCISES])


def run(code: str, call: str, folder, capsys, **names) -> str:
    """Run an exercise's cell from a file, as a trace's source must be readable; what the check printed."""
    file = folder / "cell.py"
    file.write_text(f"{code}\n\n{call}\n", encoding="utf-8")
    runpy.run_path(str(file), init_globals={"torch": torch, "checks": checks, "scale_grad": scale_grad, **names})
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def models():
    return {"model": gimkit.load("mini-gpt2"), "llama": gimkit.load("mini-llama")}


def needed(exercise, request) -> dict:
    """The models, for checks that are called with one."""
    return request.getfixturevalue("models") if exercise.call.count(",") else {}


@each_exercise
def test_the_stub_is_told_that_it_is_its_turn(number, exercise, tmp_path, capsys, request):
    assert run(exercise.stub, "", tmp_path, capsys, **needed(exercise, request)).startswith("Your turn: ")


@each_exercise
def test_the_folded_solution_passes(number, exercise, tmp_path, capsys, request):
    said = run(exercise.solution, exercise.call, tmp_path, capsys, **needed(exercise, request))
    assert said.startswith("Correct: ")


def test_every_check_belongs_to_an_exercise_and_has_a_wrong_answer():
    public = {name for name, value in vars(checks).items()
              if callable(value) and value.__module__.startswith(checks.__name__) and not name.startswith("_")}
    assert {exercise.name for _, exercise in EXERCISES} == public
    mistakes = Counter(name for name, *_ in WRONG + WRONG_ON_MODELS)
    assert set(mistakes) == public and min(mistakes.values()) >= 3


def softmax(scores, temperature=1.0):
    return (scores / temperature).softmax(-1)


def falls(to=None, joint=None, sign=1, interaction=None):
    """A wrong answer to 01.1: another place to put the scores, another joint effect, sign or interaction."""
    def answer(scores, values, i, j):
        def fall(*lowered):
            other = scores.clone()
            other[list(lowered)] = scores.mean() if to is None else to
            return sign * (softmax(scores) @ values - softmax(other) @ values)

        first, second = fall(i), fall(j)
        both = fall(i, j) if joint is None else joint(first, second)
        shared = (both - first - second) / both if interaction is None else interaction(first, second, both)
        return first, second, both, shared

    return answer


def attend_twice(t_first=1.0, t_second=True, factor=True, detach_first=True, detach_v=True):
    """A wrong answer to 02.3, by leaving a piece of the right one out."""
    def answer(attend, q, k, v, scaling, temperature):
        first = (q.detach(), k.detach(), v) if detach_first else (q, k, v)
        second = (q, k, v.detach()) if detach_v else (q, k, v)
        value = attend(*first, scaling)
        again = attend(*second, scaling / temperature if t_second else scaling)
        return value + (temperature if factor else 1) * (again - again.detach())

    return answer


def frozen(sigma_of=torch.Tensor.detach, mean_of=lambda x: x, keep=True, weighted=True):
    """A wrong answer to 02.2, by leaving a piece of the right one out."""
    def answer(x, y, weight, eps):
        sigma = (sigma_of(x).var(-1, correction=0, keepdim=True) + eps).sqrt()
        surrogate = (x - mean_of(x).mean(-1, keepdim=True)) / sigma * (weight if weighted else 1)
        return (y.detach() if keep else y) + (surrogate - surrogate.detach())

    return answer


def pearson(a, b):
    return stats.pearsonr(a, b).statistic


def interval(a_rows, b_rows=None, quantiles=(0.025, 0.975)):
    """A wrong answer to 04.3: `a_rows(n)` draws examples; b's are the same unless it has its own."""
    def answer(correlate, a, b):
        found = []
        for _ in range(500):
            rows = a_rows(len(a))
            found.append(correlate(a[rows].mean(0), b[b_rows(len(b)) if b_rows else rows].mean(0)))
        return torch.quantile(torch.tensor(found), torch.tensor(quantiles))

    return answer


def drawn(n):
    return torch.randint(n, (n,))


def draw_nodes(correlate, a, b):
    a, b = a.mean(0), b.mean(0)
    found = torch.tensor([correlate(a[i], b[i]) for i in (drawn(len(a)) for _ in range(500))])
    return torch.quantile(found, torch.tensor([0.025, 0.975]))


def each_example(correlate, a, b):
    found = torch.tensor([correlate(x, y) for x, y in zip(a, b)])
    return torch.quantile(found, torch.tensor([0.025, 0.975]))


def mean_of_each(correlate, a, b):
    found = torch.tensor([correlate(x, y) for x, y in zip(a, b)])
    return torch.quantile(torch.stack([found[drawn(len(a))].mean() for _ in range(500)]), torch.tensor([0.025, 0.975]))


def cut(among=True, absolute=None, sign=1, mask=True):
    """A wrong answer to 05.1: other cells, another ranking, or no mask."""
    def answer(scores, real, n, ranked):
        value = scores.abs() if (ranked if absolute is None else absolute) else scores
        value = (sign * value).masked_fill(~real, -torch.inf) if among else sign * value
        keep = torch.zeros_like(real)
        keep.view(-1)[value.flatten().topk(n).indices] = True
        return keep if mask else scores * keep

    return answer


def area(f, x):
    return ((f[1:] + f[:-1]) / 2 * x.diff()).sum()


def two(of):
    """A wrong answer to 05.2: `of` some other area of f and |1 - f|."""
    return lambda x, f: (of(f, x), of((1 - f).abs(), x))


def shuffle(place, source=lambda scores, real: scores[real]):
    """A wrong answer to 05.3: `place` reorders the scores of the real edges."""
    def answer(scores, real, generator):
        shuffled = torch.zeros_like(scores)
        shuffled[real] = place(source(scores, real), generator)
        return shuffled

    return answer


def shuffle_every_cell(scores, real, generator):
    return scores.flatten()[torch.randperm(scores.numel(), generator=generator)].view_as(scores)


def shuffle_in_place(scores, real, generator):
    scores[real] = scores[real][torch.randperm(int(real.sum()), generator=generator)]
    return scores


def shuffle_within_rows(scores, real, generator):
    shuffled = torch.zeros_like(scores)
    for row, edges in enumerate(real):
        shuffled[row, edges] = scores[row, edges][torch.randperm(int(edges.sum()), generator=generator)]
    return shuffled


def share_of_pairs(inside, itself=False):
    """A wrong answer to 07.1: another thing asked of the pairs of seeds, or pairs of a seed with itself."""
    def answer(measure, seeds):
        values = [measure(seed) for seed in seeds]
        found = [bootstrap(lambda i, v=each: v[i].mean(), len(each)) for each in values]
        spread = [each.std() for each in values]
        pairs = [inside(a, b, wide) for a, wide in zip(found, spread) for b in found if itself or a is not b]
        return sum(pairs) / len(pairs)

    return answer


def reconstruct(score=torch.abs, rows=False, nothing=False, mask=False, decoder=False, times=1):
    """A wrong answer to 06.1: largest by another score, in each row, nothing or only the mask kept, V_out read."""
    def kept(size, count):
        return (size >= size.flatten().topk(count).values[-1]).to(size.dtype)

    def answer(gradients, v_in, v_out, k):
        h = gradients @ (v_out if decoder else v_in).T
        each = torch.stack([kept(row, max(1, int(k * len(row)))) for row in score(h)])
        keep = each if rows else kept(score(h), int(k * h.numel()))
        return times * (keep if mask else h * (1 if nothing else keep)) @ v_out

    return answer


def unit(v):
    return v / v.norm()


def norm_with_correction(x, y, weight, eps):
    sigma = (x.detach().var(-1, keepdim=True) + eps).sqrt()
    return with_grad_of(y, weight * (x - x.mean(-1, keepdim=True)) / sigma)


WRONG = [
    ("sparse_reconstruction", reconstruct(score=lambda h: h), "compare .h."),
    ("sparse_reconstruction", reconstruct(rows=True), "whole batch"),
    ("sparse_reconstruction", reconstruct(nothing=True), "Nothing was left out"),
    ("sparse_reconstruction", reconstruct(mask=True), "mask itself"),
    ("sparse_reconstruction", reconstruct(decoder=True), "come from V_in"),
    ("sparse_reconstruction", lambda g, v_in, v_out, k: g[0], "shape"),
    ("sparse_reconstruction", reconstruct(times=2), "Not the reconstruction"),
    ("planted_direction", lambda g: unit(g.mean(0)), "cancel in the mean"),
    ("planted_direction", lambda g: g.mean(0), "and cancel in it"),
    ("planted_direction", lambda g: unit(g[0]), "Use all"),
    ("planted_direction", lambda g: torch.linalg.svd(g).Vh[-1], "first one"),
    ("planted_direction", lambda g: torch.linalg.svd(g).Vh[:, 0], "rows"),
    ("planted_direction", lambda g: 2 * torch.linalg.svd(g).Vh[0], "unit vector"),
    ("planted_direction", lambda g: g, "one direction"),
    ("planted_direction", lambda g: unit(torch.ones(8, dtype=g.dtype)), "first right singular vector"),
    ("replicated", share_of_pairs(lambda a, b, wide: a.low <= b.value <= a.high, itself=True), "own mean always"),
    ("replicated", share_of_pairs(lambda a, b, wide: abs(a.value - b.value) <= 1.96 * wide), "of single prompts"),
    ("replicated", share_of_pairs(lambda a, b, wide: a.low <= 0 <= a.high), "whether 0 lies inside"),
    ("replicated", share_of_pairs(lambda a, b, wide: a.low <= b.high and b.low <= a.high), "Two intervals overlap"),
    ("replicated", lambda *_: 95.0, "between 0 and 1"),
    ("ablation_effects", falls(to=0.0), "Zero is not neutral"),
    ("ablation_effects", falls(to=-torch.inf), "removed the positions"),
    ("ablation_effects", falls(sign=-1), "signs are reversed"),
    ("ablation_effects", falls(joint=lambda first, second: first + second), "not the sum of the two single ones"),
    ("ablation_effects", falls(interaction=lambda first, second, both: both - first - second), "divide it by"),
    ("ablation_effects", lambda *_: 1.0, "four numbers"),
    ("softmax_backward", lambda a, g, t: softmax(a) * (g - (softmax(a) * g).sum(-1, keepdim=True)), "plain gradient"),
    ("softmax_backward", lambda a, g, t: softmax(a, t) * (g - (softmax(a, t) * g).sum(-1, keepdim=True)) / t, "1 / T"),
    ("softmax_backward", lambda a, g, t: softmax(a, t) * g, "The mean is missing"),
    ("softmax_backward", lambda a, g, t: softmax(a, t) * (g - (softmax(a, t) * g).sum()), "whole tensor"),
    ("softmax_backward", lambda a, g, t: softmax(a, 2) * (g - (softmax(a, 2) * g).sum(-1, keepdim=True)), "argument"),
    ("hidden_from_the_gradient", [8, 8, 0, 0, 0], "raising the first two scores"),
    ("hidden_from_the_gradient", [20, 20, 0, 0, 0], "hardly matters"),
    ("hidden_from_the_gradient", [12, 12], "Five scores"),
    ("split_gradients", lambda q, k, v: (q / 4, k / 4, v / 2), "changed its value"),
    ("split_gradients", lambda q, k, v: (0.9 * q.detach() + 0.1 * q, k, v), "not bit for bit"),
    ("split_gradients", lambda q, k, v: (q, k, v), "nothing is scaled"),
    ("split_gradients", lambda q, k, v: tuple(scale_grad(x, 0.5) for x in (q, k, v)), "two products"),
    ("split_gradients", lambda q, k, v: tuple(x.detach() for x in (q, k, v)), "no gradient any more"),
    ("frozen_norm", norm_with_correction, "correction=0"),
    ("frozen_norm", lambda x, y, weight, eps: y, "plain gradient"),
    ("frozen_norm", frozen(sigma_of=lambda x: x), "plain gradient"),
    ("frozen_norm", frozen(mean_of=torch.Tensor.detach), "centring stays differentiable"),
    ("frozen_norm", frozen(keep=False), "Two gradients were added"),
    ("frozen_norm", frozen(weighted=False), "weight is missing"),
    ("frozen_norm", lambda x, y, weight, eps: weight * x, "changed its value"),
    ("tempered_attention", lambda attend, q, k, v, scaling, t: attend(q, k, v, scaling / t), "changed its value"),
    ("tempered_attention", attend_twice(t_second=False, factor=False), "plain one"),
    ("tempered_attention", attend_twice(factor=False), "Multiply the added term by the temperature"),
    ("tempered_attention", attend_twice(detach_first=False), "two gradients"),
    ("tempered_attention", attend_twice(detach_v=False), "v's gradient changed"),
    ("spearman", pearson, "correlation of the values"),
    ("spearman", lambda a, b: -stats.spearmanr(a, b).statistic, "sign is reversed"),
    ("spearman", lambda a, b: pearson(a.argsort(stable=True), b.argsort(stable=True)), "argsort gives the place"),
    ("spearman", lambda a, b: pearson(a.argsort(stable=True).argsort(), b.argsort(stable=True).argsort()),
     "not with them"),
    ("spearman", lambda a, b: stats.kendalltau(a, b).statistic, "Not Spearman's"),
    ("spearman", lambda a, b: a, "one number"),
    ("predicted_signs", {"A": "-", "B": "0", "C": "0", "D": "-"}, "Row A.*takes its weight"),
    ("predicted_signs", {"A": "+", "B": "+", "C": "0", "D": "-"}, "Row B.*whatever the weights"),
    ("predicted_signs", {"A": "+", "B": "0", "C": "+", "D": "-"}, "Row C.*they still balance"),
    ("predicted_signs", {"A": "+", "B": "0", "C": "0", "D": "+"}, "Row D.*the effects are negative"),
    ("predicted_signs", ["+", "0", "0", "-"], "Give a dictionary"),
    ("bootstrap_interval", interval(drawn, drawn), "different examples"),
    ("bootstrap_interval", draw_nodes, "You drew nodes"),
    ("bootstrap_interval", mean_of_each, "own correlations"),
    ("bootstrap_interval", each_example, "single examples spread"),
    ("bootstrap_interval", interval(torch.randperm), "no width"),
    ("bootstrap_interval", interval(drawn, quantiles=(0.25, 0.75)), "is not the interval"),
    ("bootstrap_interval", lambda correlate, a, b: (correlate(a, b),) * 2, "the means over the drawn"),
    ("cut_circuit", cut(absolute=True), "cut by .score. although absolute is False"),
    ("cut_circuit", cut(absolute=False), "cut by score although absolute is True"),
    ("cut_circuit", cut(among=False), "do not exist"),
    ("cut_circuit", cut(sign=-1), "the worst edges"),
    ("cut_circuit", cut(mask=False), "True and False"),
    ("cut_circuit", lambda scores, real, n, absolute: real & (scores > 0.5), "edges instead of 7"),
    ("cut_circuit", lambda scores, real, n, absolute: cut()(scores.flip(0), real, n, absolute), "not the best"),
    ("areas", two(lambda f, x: f.mean()), "mean over the sizes"),
    ("areas", two(lambda f, x: (f[1:] * x.diff()).sum()), "their right end"),
    ("areas", two(lambda f, x: (f[:-1] * x.diff()).sum()), "their left end"),
    ("areas", two(lambda f, x: area(f, x.log10())), "logarithm"),
    ("areas", lambda x, f: (area((1 - f).abs(), x), area(f, x)), "wrong way round"),
    ("areas", lambda x, f: (area(f, x), area(1 - f, x)), "gives back"),
    ("areas", lambda x, f: (area(f, x), abs(1 - area(f, x))), "too low here and too high there"),
    ("areas", lambda x, f: (area(f, x), area((1 - f) ** 2, x)), "CPR is right, CMD is not"),
    ("areas", lambda x, f: area(f, x), "two numbers"),
    ("areas", lambda x, f: (f.sum(), 0.0), "CPR is off"),
    ("shuffled_scores", shuffle_every_cell, "no edges"),
    ("shuffled_scores", shuffle_in_place, "Write into a copy"),
    ("shuffled_scores", shuffle_within_rows, "to a few places"),
    ("shuffled_scores", shuffle(lambda x, g: torch.randn(len(x), generator=g)), "other numbers"),
    ("shuffled_scores", shuffle(lambda x, g: x), "Nothing moved"),
    ("shuffled_scores", shuffle(lambda x, g: x[torch.randperm(len(x), generator=torch.Generator().manual_seed(7))]),
     "would be the same"),
    ("shuffled_scores", shuffle(lambda x, g: x[torch.randperm(len(x))]), "that is passed in"),
    ("shuffled_scores", lambda scores, real, generator: scores[real], "one score for each cell"),
    ("sandbox_calls", {"A": "yes"}, "keys A to E"),
    ("sandbox_calls", dict.fromkeys("ABCDE", "maybe"), "the answers are"),
    ("sandbox_calls", dict.fromkeys("ABCDE", "no"), "no gradient"),
    ("sandbox_calls", dict.fromkeys("ABCDE", "yes"), "forward to the"),
    ("sandbox_calls", {"A": "yes", "B": "forward", "C": "forward", "D": "yes", "E": "yes"}, "far too many"),
    ("sandbox_calls", {"A": "yes", "B": "forward", "C": "no", "D": "no", "E": "yes"}, "what a sandbox is for"),
]


@pytest.mark.parametrize("name, answer, lesson", WRONG, ids=[f"{name}-{lesson}" for name, _, lesson in WRONG])
def test_a_wrong_answer_hears_why(name, answer, lesson):
    check = getattr(checks, name)
    with pytest.raises(AssertionError, match=lesson):
        check(answer)


def edit(change):
    """A wrong answer to 02.4: an edit that does something else to each layer's MLP."""
    def answer(model):
        with model.edit() as (tracer, edited):
            for layer in edited.model.layers:
                change(layer.mlp)
        return edited

    return answer


def halve_value(mlp):
    mlp.down_proj.input = 0.5 * mlp.down_proj.input


def halve_gate_alone(mlp):
    mlp.gate_proj.output = scale_grad(mlp.gate_proj.output, 0.5)


def halve_thrice(mlp):
    mlp.gate_proj.output = scale_grad(mlp.gate_proj.output, 0.5)
    mlp.up_proj.output = scale_grad(mlp.up_proj.output, 0.5)
    mlp.down_proj.input = scale_grad(mlp.down_proj.input, 0.5)


def forget_to_assign(mlp):
    scale_grad(mlp.down_proj.input, 0.5)


def only_the_first_layer(model):
    with model.edit() as (tracer, edited):
        down = edited.model.layers[0].mlp.down_proj
        down.input = scale_grad(down.input, 0.5)
    return edited


def shape_of_the_logits(model, module, prompt):
    with model.trace(prompt):
        logits = model.output.logits.save()
    return logits.shape


def shape_of_another_prompt(model, module, prompt):
    with model.trace("Mary"):
        output = module.output.save()
    return output.shape


def shape_of_one_row(model, module, prompt):
    with model.trace(prompt):
        output = module.output[0].save()
    return output.shape


def attribution(corrupt=True, sign=1, of_corrupt=False, where=None, axes=(1, 2)):
    """A wrong answer to 04.1: another distance, sign, gradient, position or sum."""
    def answer(model, module, task, right, wrong):
        n, rows = len(task), torch.arange(2 * len(task))
        with model.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False):
            output = module.output.detach().requires_grad_(True)
            module.output = output
            logits = model.output.logits[rows, task.last.repeat(2)]
            difference = logits[rows, right.repeat(2)] - logits[rows, wrong.repeat(2)]
            gradient = torch.autograd.grad(difference.sum(), output)[0]
            slope = gradient[n:] if of_corrupt else gradient[:n]
            distance = output[:n] - output[n:] if corrupt else output[:n]
            product = (sign * distance * slope).detach().save()
        return product[torch.arange(n), task.last].sum(-1) if where else product.sum(axes)

    return answer


def of_the_unedited_model(model, module, task, right, wrong):
    """A wrong answer to 04.1: the plain gradient, whatever model it is given."""
    plain = gimkit.remove(model) if "_gimkit" in vars(model) else model
    return attribution()(plain, plain.get(architecture_of(plain).blocks[1].mlp), task, right, wrong)


def direct(sign=1, live=False, whole=False, weighted=True, scaled=True, rival=True, last=True):
    """A wrong answer to 03.2, by leaving a piece of the right one out."""
    def answer(model, task, right, wrong, layer, head):
        n, rows = len(task), torch.arange(2 * len(task))
        projection, norm = model.model.layers[layer].self_attn.o_proj, model.model.norm
        width = architecture_of(model).head_dim
        mine = slice(None) if whole else slice(head * width, (head + 1) * width)
        where = task.last.repeat(2) if last else torch.full((2 * n,), task.clean.shape[1] - 1)
        with model.trace(input_ids=torch.cat([task.clean, task.corrupt]), use_cache=False):
            z = projection.input[rows, where].save()
            x = norm.input[rows[:n], task.last].save()
        change = (z[:n, mine] - z[n:, mine]) @ projection.weight[:, mine].T
        direction = model.lm_head.weight[right] - rival * model.lm_head.weight[wrong]

        def read(stream, like):
            scale = (like.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() if scaled else 1
            return (stream / scale * (norm.weight if weighted else 1) * direction).sum(-1)

        return read(x, x) - read(x - change, x - change) if live else sign * read(change, x)

    return answer


def held(heads=True, mlps=True, own_mlp=True, itself=False, sign=1):
    """A wrong answer to 03.3: not all later parts are held, or the ablated head, too."""
    def answer(model, task, right, wrong, layer, head):
        n, width, blocks = len(task), architecture_of(model).head_dim, list(enumerate(model.model.layers))
        rows, mine = torch.arange(n), slice(head * width, (head + 1) * width)
        with model.trace(input_ids=torch.cat([task.clean, task.corrupt, task.clean]), use_cache=False):
            for i, block in blocks:
                z = block.self_attn.o_proj.input.clone()
                if i == layer and not itself:
                    z[2 * n:, :, mine] = z[n:2 * n, :, mine]
                if i > layer and heads:
                    z[2 * n:] = z[:n]
                block.self_attn.o_proj.input = z
                m = block.mlp.output.clone()
                if mlps and (i > layer or (i == layer and own_mlp)):
                    m[2 * n:] = m[:n]
                block.mlp.output = m
            logits = model.output.logits.unflatten(0, (3, n))[:, rows, task.last]
            difference = (logits[:, rows, right] - logits[:, rows, wrong]).save()
        return sign * (difference[0] - difference[2])

    return answer


def frozen_throughout(model, task, right, wrong, layer, head):
    """A wrong answer to 03.3: the direct effect, in which not even the norm answers."""
    return direct()(model, task, right, wrong, layer, head)


def strengths(read=lambda x: x[0, -1].norm(), inside=True, sends=True, traces=False):
    """A wrong answer to 08.1: something else read, saved whole, not sent, or sent layer by layer."""
    def answer(model, prompt, where):
        paths, found = [block.mlp for block in architecture_of(model).blocks], []
        where = where if sends else False
        if traces:
            for path in paths:
                with model.trace(prompt, use_cache=False, remote=where):
                    norm = read(model.get(path).output).save()
                found.append(norm)
        elif inside:
            with model.trace(prompt, use_cache=False, remote=where):
                found = torch.stack([read(model.get(path).output) for path in paths]).save()
        else:
            with model.trace(prompt, use_cache=False, remote=where):
                outputs = [model.get(path).output for path in paths].save()
            found = [read(x) for x in outputs]
        return found

    return answer


WRONG_ON_MODELS = [
    ("strengths", "model", strengths(sends=False), "Nothing was sent"),
    ("strengths", "model", strengths(inside=False), "numbers came back"),
    ("strengths", "model", strengths(traces=True), "5 requests"),
    ("strengths", "llama", strengths(lambda x: x[0, 0].norm()), "the first token"),
    ("strengths", "llama", strengths(lambda x: x.norm()), "over all tokens"),
    ("strengths", "llama", strengths(lambda x: x[0, -1].sum()), "These are sums"),
    ("strengths", "llama", strengths(lambda x: x[0, -1]), "a number per layer"),
    ("read_a_trace", "model", shape_of_the_logits, "these are the logits"),
    ("read_a_trace", "model", shape_of_another_prompt, "this prompt has"),
    ("read_a_trace", "model", shape_of_one_row, "a batch of one"),
    ("direct_effect", "llama", direct(sign=-1), "signs are reversed"),
    ("direct_effect", "llama", direct(live=True), "its denominator compensates"),
    ("direct_effect", "llama", direct(whole=True), "whole attention layer"),
    ("direct_effect", "llama", direct(weighted=False), "weight is missing"),
    ("direct_effect", "llama", direct(scaled=False), "denominator is missing"),
    ("direct_effect", "llama", direct(rival=False), "right answer's logit alone"),
    ("direct_effect", "llama", direct(last=False), "task.last"),
    ("direct_effect", "llama", held(heads=False, mlps=False), "total effect"),
    ("no_compensation", "llama", held(sign=-1), "signs are reversed"),
    ("no_compensation", "llama", held(heads=False, mlps=False), "nothing was held"),
    ("no_compensation", "llama", held(mlps=False), "Only heads are held"),
    ("no_compensation", "llama", held(heads=False), "Only MLPs are held"),
    ("no_compensation", "llama", held(own_mlp=False), "own layer is forgotten"),
    ("no_compensation", "llama", held(itself=True), "got its clean output back"),
    ("no_compensation", "llama", frozen_throughout, "freezes the final norm"),
    ("halved_products", "llama", edit(halve_value), "The logits changed"),
    ("halved_products", "llama", edit(halve_gate_alone), "Only the gate branch"),
    ("halved_products", "llama", edit(halve_thrice), "A quarter each"),
    ("halved_products", "llama", edit(forget_to_assign), "nothing was placed"),
    ("halved_products", "llama", only_the_first_layer, "each layer"),
    ("attribution_patching", "model", attribution(sign=-1), "signs are reversed"),
    ("attribution_patching", "model", attribution(corrupt=False), "output times gradient"),
    ("attribution_patching", "model", attribution(of_corrupt=True), "that of the corrupt rows"),
    ("attribution_patching", "model", attribution(where="last"), "Only the last position"),
    ("attribution_patching", "model", attribution(axes=(0, 1, 2)), "one number per example"),
    ("attribution_patching", "model", of_the_unedited_model, "under the rules gim"),
]


@pytest.mark.parametrize("name, which, answer, lesson", WRONG_ON_MODELS,
                         ids=[f"{name}-{lesson}" for name, _, _, lesson in WRONG_ON_MODELS])
def test_a_wrong_answer_on_a_model_hears_why(name, which, answer, lesson, models):
    check = getattr(checks, name)
    with pytest.raises(AssertionError, match=lesson):
        check(answer, models[which])


def test_jupyter_shows_a_wrong_answer_as_one_box_without_a_traceback(capsys):
    shell = InteractiveShell()
    shell.user_ns |= {"checks": checks, "scale_grad": scale_grad}
    done = shell.run_cell("checks.split_gradients(lambda q, k, v: (q, k, v))")
    said = capsys.readouterr().out
    top, *middle, bottom = said.rstrip().splitlines()
    assert isinstance(done.error_in_exec, AssertionError) and "nothing is scaled yet" in said
    assert top.startswith("┌") and bottom.startswith("└") and all(line.startswith("│") for line in middle)
    assert "Traceback" not in said and "assert" not in said and "answers.py" not in said


def shape_without_save(model, module, prompt):
    with model.trace(prompt):
        output = module.output
    return output.shape


def strengths_without_save(model, prompt, where):
    paths = [block.mlp for block in architecture_of(model).blocks]
    with model.trace(prompt, use_cache=False, remote=where):
        norms = torch.stack([model.get(path).output[0, -1].norm() for path in paths])
    return norms


@pytest.mark.parametrize("name, answer, value", [("read_a_trace", shape_without_save, "output"),
                                                 ("strengths", strengths_without_save, "norms")])
def test_a_forgotten_save_is_named(name, answer, value, models):
    with pytest.raises(AssertionError, match=f"^{value} has no value after the trace.*save"):
        getattr(checks, name)(answer, models["model"])


def test_a_right_interval_passes_whatever_it_draws(capsys):
    for seed in range(5):
        torch.manual_seed(seed)
        checks.bootstrap_interval(interval(drawn))
    assert capsys.readouterr().out.count("Correct: ") == 5


def test_other_ways_to_the_right_direction_pass(capsys):
    checks.planted_direction(lambda g: -torch.linalg.svd(g).Vh[0])
    checks.planted_direction(lambda g: torch.linalg.eigh(g.T @ g).eigenvectors[:, -1])
    assert capsys.readouterr().out.count("Correct: ") == 2
