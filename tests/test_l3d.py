"""L3D's core: gradients, low-rank algebra, sparsity and whole training steps against versions written out."""

import literal_l3d as literal
import pytest
import tiny
import torch
from torch import nn

import gimkit
from gimkit import l3d
from gimkit.errors import GimkitError
from gimkit.l3d import files, training, tucker
from gimkit.l3d.gradients import (
    DIVERGENCES,
    chosen_parameters,
    kl,
    mse,
    mse_of_the_code,
    outputs_of,
    per_sample_gradients,
    random_references,
)
from gimkit.l3d.language import attention_names
from gimkit.l3d.selection import activity
from gimkit.l3d.toys import Linear2, Squarer


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class Convolution(nn.Module):
    """Small, with a kernel of four axes and a normalisation that has running statistics."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4 * 16, 3)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.conv(x)).relu().flatten(1)))


MODELS = {
    "two layers": (lambda: Linear2(6, 3, 6), lambda: noise(12, 6, seed=1)),
    "squarer": (lambda: Squarer(4, 3), lambda: noise(12, 4, seed=1)),
    "convolution": (lambda: Convolution().eval(), lambda: noise(12, 2, 6, 6, seed=1)),
}
SHAPES, RANKS = [(5,), (5, 4), (3, 4, 5), (4, 2, 3, 3)], [(1,), (2, 3), (2, 2, 3), (2, 1, 2, 3)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("chunk", [None, 5])
def test_per_sample_gradients_are_those_of_one_backward_pass_each(name, divergence, chunk):
    module, x = seeded(MODELS[name][0]), MODELS[name][1]()
    references = module(x).detach().roll(3, 0)
    parameters = chosen_parameters(module)
    found = per_sample_gradients(module, parameters, (x,), references, DIVERGENCES[divergence], chunk)
    assert [part.shape[1:] for part in found] == [value.shape for value in parameters.values()]
    want = literal.gradients(module, list(parameters), (x,), references, DIVERGENCES[divergence])
    assert torch.allclose(torch.cat([part.flatten(1) for part in found], 1), want, atol=1e-6, rtol=1e-4)


def test_divergences_are_their_formulas():
    p, r = noise(5, dtype=torch.float64), noise(5, seed=1, dtype=torch.float64)
    assert mse(p, r) == pytest.approx(float(literal.mse(p, r)))
    assert mse_of_the_code(p, r) == pytest.approx(sum(float(a * (a - b)) for a, b in zip(p, r)) / 5)
    a, b = p.exp() / p.exp().sum(), r.exp() / r.exp().sum()
    assert kl(p, r) == pytest.approx(sum(float(y * (y / x).log()) for x, y in zip(a, b)))


def test_the_chosen_tensors_of_a_transformer_have_the_gradients_of_one_pass_each():
    model = gimkit.load("mini-gpt2")
    module = l3d.NextToken(model)
    task = gimkit.tasks.ioi(model, n=4)
    inputs = module.inputs(task.clean, task.last)
    found = per_sample_gradients(module, chosen_parameters(module, "*h.2.attn.*"), inputs, noise(4, 561), kl)
    names = list(chosen_parameters(module, "*h.2.attn.*"))
    assert len(names) == 4 and all("h.2.attn" in name for name in names)
    with torch.no_grad():
        logits = model._module(input_ids=task.clean).logits[torch.arange(4), task.last]
    assert torch.allclose(module(*inputs), logits, atol=1e-4)
    want = literal.gradients(module, names, inputs, noise(4, 561), kl)
    assert torch.allclose(torch.cat([part.flatten(1) for part in found], 1), want, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("name", tiny.GIM)
def test_every_architecture_gives_its_logits_and_gradients_of_attention(name):
    model = tiny.build(name)
    ids, last = tiny.token_ids(2, 4), torch.tensor([3, 2])
    module = l3d.NextToken(model).eval()
    inputs = module.inputs(ids, last)
    with torch.no_grad():
        logits = module.model(input_ids=ids, use_cache=False).logits[torch.arange(2), last]
    assert torch.allclose(module(*inputs), logits, atol=1e-5)
    parameters = chosen_parameters(module, attention_names(module, [1]))
    found = per_sample_gradients(module, parameters, inputs, noise(2, tiny.VOCAB), kl)
    want = literal.gradients(module, list(parameters), inputs, noise(2, tiny.VOCAB), kl)
    flat = torch.cat([part.flatten(1) for part in found], 1)
    assert float((flat - want).norm()) < 1e-4 * float(want.norm())


def test_low_rank_algebra_is_that_of_directions_written_out():
    draw = torch.Generator().manual_seed(0)
    a = tucker.draw(SHAPES, RANKS, 4, draw, torch.float64)
    v = literal.matrix(a, 4)
    gradients = [noise(6, *shape, dtype=torch.float64) for shape in SHAPES]
    flat = torch.cat([part.flatten(1) for part in gradients], 1)
    assert torch.allclose(tucker.inner(a, gradients), flat @ v.T)
    h = noise(6, 4, dtype=torch.float64)
    assert torch.allclose(torch.cat([part.flatten(1) for part in tucker.combine(a, h)], 1), h @ v)
    assert torch.allclose(tucker.norms(a), v.norm(dim=1))
    assert torch.allclose(torch.cat([part.flatten() for part in tucker.dense(a, 2)]), v[2])
    tucker.normalise(a)
    assert torch.allclose(literal.matrix(a, 4), v / v.norm(dim=1, keepdim=True))


def test_a_direction_of_norm_zero_stays_zero():
    directions = [tuple(torch.zeros_like(part) for part in factors)
                  for factors in tucker.draw(SHAPES, RANKS, 2, torch.Generator())]
    tucker.normalise(directions)
    assert all(bool((part == 0).all()) for factors in directions for part in factors)


@pytest.mark.parametrize("k", [0.001, 0.1, 0.5, 1.0])
def test_the_largest_of_the_whole_batch_are_kept(k):
    h = noise(7, 5)
    assert torch.equal(training.largest(h, k), literal.kept(h, k))
    assert torch.equal(training.largest(h * (h > 0), 1.0), (h > 0).float())  # what is zero is not in use


def test_reconstruction_and_energies_written_out():
    draw = torch.Generator().manual_seed(0)
    encoder, decoder = (tucker.draw(SHAPES, RANKS, 4, draw, torch.float64) for _ in range(2))
    gradients = [noise(6, *shape, dtype=torch.float64) for shape in SHAPES]
    flat = torch.cat([part.flatten(1) for part in gradients], 1)
    rebuilt, h, kept = training.reconstruct(encoder, decoder, gradients, 0.3)
    want = flat @ literal.matrix(encoder, 4).T
    assert torch.allclose(h, want) and torch.equal(kept, literal.kept(want, 0.3))
    dense = (want * kept) @ literal.matrix(decoder, 4)
    assert torch.allclose(torch.cat([part.flatten(1) for part in rebuilt], 1), dense)
    missed, whole = training.energies(gradients, rebuilt)
    assert missed == pytest.approx(float((flat - dense).norm()) ** 2)
    assert whole == pytest.approx(float(flat.norm()) ** 2)


def drawn(seed, epoch, n):
    """The order and references of an epoch."""
    draw = torch.Generator().manual_seed(1_000_003 * (seed + 1) + epoch)
    order = torch.randperm(n, generator=draw)
    return order, random_references(n, draw)[order]


@pytest.mark.parametrize("name", ["two layers", "squarer"])
@pytest.mark.parametrize("loss", ["norm", "squared"])
def test_training_is_what_the_written_out_version_does(name, loss):
    module, x = seeded(MODELS[name][0]), MODELS[name][1]()
    settings = dict(n=3, rank=2, k=0.3, epochs=3, batch=5, rate=0.02, decay=0.5, every=2, weight_decay=0.1, warm=1)
    found = l3d.decompose(module, x, seed=4, loss=loss, progress=False, **settings)
    names, shapes = list(found.names), [value.shape for value in chosen_parameters(module).values()]
    start = tucker.draw(shapes, [(2,) * len(s) if len(s) > 1 else (1,) for s in shapes], 3,
                        torch.Generator().manual_seed(4))
    size = literal.matrix(start, 3).norm(dim=1)
    start = [[part / (size ** (1 / len(factors))).view(-1, *[1] * (part.ndim - 1)) for part in factors]
             for factors in start]
    batches, shares = [], []
    for epoch in range(2):  # the rate halves in the third epoch, which the written-out version leaves out
        order, partner = drawn(4, epoch, 12)
        batches += [(order[i:i + 5], partner[i:i + 5]) for i in (0, 5, 10)]
        shares += [0.999 if epoch == 0 else 0.3] * 3
    _, _, losses = literal.train(module, names, x, start, start, batches, shares, 0.02, 0.1, squared=loss == "squared")
    assert found.errors[:2, 0].tolist() == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-4)
    short = l3d.decompose(module, x, seed=4, loss=loss, progress=False, **settings | {"epochs": 2})
    encoder, decoder, _ = literal.train(module, names, x, start, start, batches, shares, 0.02, 0.1,
                                        squared=loss == "squared")
    for mine, theirs in ((short.encoder, encoder), (short.decoder, decoder)):
        for factors, wanted in zip(mine, theirs):
            for part, want in zip(factors, wanted):
                assert torch.allclose(part, want, atol=1e-4)


def test_the_rate_falls_and_the_warm_start_ends():
    module, x = seeded(MODELS["squarer"][0]), noise(12, 4, seed=1)
    state = training.Trained([value.shape for value in chosen_parameters(module).values()], [(1, 1), (1,)] * 3,
                             training.Settings(n=4, epochs=5, every=2, rate=0.1, decay=0.5, k=0.25, warm=2), [0])
    outputs = outputs_of(module, (x,))
    rates, kept = [], []
    for _ in range(5):
        state.epoch(lambda rows, partner: per_sample_gradients(module, chosen_parameters(module), (x[rows],),
                                                               outputs[partner]), 12)
        rates.append(state.optimiser.param_groups[0]["lr"])
        kept.append(float(state.p_act.sum()))
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])
    assert kept[:2] == pytest.approx([int(0.999 * 48) / 12] * 2) and kept[2:] == pytest.approx([1.0] * 3)


def test_no_sample_is_its_own_reference_and_all_others_are():
    partner = torch.stack([random_references(5, torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert not bool((partner == torch.arange(5)).any())
    assert all(len(column.unique()) == 4 for column in partner.T)


def test_decoders_have_norm_one_and_the_module_is_left_alone():
    module = Convolution().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = l3d.decompose(module, MODELS["convolution"][1](), parameters="conv.*", n=3, rank=2, epochs=2, batch=4,
                          progress=False)
    assert found.names == ("conv.weight", "conv.bias") and module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    for which in range(3):
        norm = sum(float(part.square().sum()) for part in found.subnetwork(which).values())
        assert norm == pytest.approx(1, rel=1e-4)
    assert found.frame().p_act.tolist() == pytest.approx(found.p_act.tolist()) and "3 subnetworks" in repr(found)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    module, x = seeded(MODELS["two layers"][0]), noise(20, 6, seed=1)
    a, b, c = (l3d.decompose(module, x, n=3, epochs=3, seed=seed, progress=False) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(sum(a.decoder, ()), sum(b.decoder, ())))
    assert torch.equal(a.errors, b.errors) and not torch.equal(a.errors, c.errors)


@pytest.mark.parametrize("name", ["two layers", "squarer"])
def test_many_at_once_are_what_each_is_alone(name):
    modules = [seeded(MODELS[name][0], seed) for seed in range(3)]
    xs = [noise(20, 4 if name == "squarer" else 6, seed=seed) for seed in range(3)]
    settings = dict(n=4, rank=2, epochs=3, batch=6, progress=False)
    together = l3d.decompose_alike(modules, xs, seeds=[5, 6, 7], **settings)
    for module, x, seed, found in zip(modules, xs, (5, 6, 7), together):
        alone = l3d.decompose(module, x, seed=seed, **settings)
        assert found.errors.numpy() == pytest.approx(alone.errors.numpy(), rel=1e-3)
        for p, q in zip(sum(found.decoder, ()), sum(alone.decoder, ())):
            assert torch.allclose(p, q, atol=1e-3)


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    module, x = seeded(MODELS["two layers"][0]), noise(20, 6, seed=1)
    settings = dict(n=3, epochs=5, progress=False)
    whole, epoch, seen = l3d.decompose(module, x, **settings), training.Trained.epoch, []

    def cut_off(self, *given):
        seen.append(len(self.errors))
        if len(seen) == 4:
            raise KeyboardInterrupt
        epoch(self, *given)

    monkeypatch.setattr(training.Trained, "epoch", cut_off)
    with pytest.raises(KeyboardInterrupt):
        l3d.decompose(module, x, checkpoint=tmp_path / "run", **settings)
    assert len(l3d.Decomposition.load(tmp_path / "run").errors) == 3  # only the epoch in progress is lost
    rest = l3d.decompose(module, x, checkpoint=tmp_path / "run", **settings)
    assert seen == [0, 1, 2, 3, 3, 4]
    assert torch.equal(whole.errors, rest.errors) and torch.equal(whole.p_act, rest.p_act)
    assert all(torch.equal(p, q) for p, q in zip(sum(whole.decoder, ()), sum(rest.decoder, ())))
    again = l3d.decompose(module, x, checkpoint=tmp_path / "run", **settings)
    assert len(seen) == 6 and torch.equal(again.errors, whole.errors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.safetensors"]
    with pytest.raises(GimkitError, match="another decomposition .settings"):
        l3d.decompose(module, x, checkpoint=tmp_path / "run", **settings | {"n": 4})
    with pytest.raises(GimkitError, match="another decomposition .fingerprint"):
        l3d.decompose(module, x + 1, checkpoint=tmp_path / "run", **settings)


def test_what_was_saved_is_read_back(tmp_path):
    module, x = seeded(MODELS["two layers"][0]), noise(20, 6, seed=1)
    found = l3d.decompose(module, x, n=12, rank={"W_in": (2, 1), "W_out": (1, 3), "b": (1,)}, epochs=1, progress=False)
    found.save(tmp_path / "saved")
    back = l3d.Decomposition.load(tmp_path / "saved")
    assert (back.names, back.seed) == (found.names, found.seed) and back.settings["n"] == 12
    assert all(torch.equal(p, q) for p, q in zip(sum(found.encoder + found.decoder, ()),
                                                 sum(back.encoder + back.decoder, ())))
    with pytest.raises(GimkitError, match="no decomposition"):
        l3d.Decomposition.load(tmp_path / "nothing")
    (tmp_path / "saved.safetensors").write_bytes(b"not one")
    with pytest.raises(GimkitError, match="delete them"):
        l3d.Decomposition.load(tmp_path / "saved")
    files.write(tmp_path / "other", {"kind": "shoes"}, {"a": torch.zeros(1)})
    with pytest.raises(GimkitError, match="does not describe"):
        l3d.Decomposition.load(tmp_path / "other")


def test_activity_is_that_of_batches_written_out():
    module, x = seeded(MODELS["two layers"][0]), noise(10, 6, seed=1)
    found = l3d.decompose(module, x, n=3, epochs=2, batch=4, k=0.4, progress=False)
    measured = activity(found, module, x, references=2, seed=3)
    v_in, v_out = literal.matrix(found.encoder, 3), literal.matrix(found.decoder, 3)
    draw, outputs = torch.Generator().manual_seed(3), module(x).detach()
    impact, kept, missed, whole = torch.zeros(10, 3), torch.zeros(10, 3), 0, 0
    for _ in range(2):
        order, partner = torch.randperm(10, generator=draw), random_references(10, draw)
        for rows in order.split(4):
            g = literal.gradients(module, found.names, (x[rows],), outputs[partner[rows]], literal.mse)
            h = g @ v_in.T
            mask = literal.kept(h, 0.4)
            impact[rows] += h.abs() / 2
            kept[rows] += mask / 2
            missed, whole = missed + (g - (h * mask) @ v_out).square().sum(), whole + g.square().sum()
    assert torch.allclose(measured.impact, impact, atol=1e-5) and torch.equal(measured.kept, kept)
    assert measured.squared == pytest.approx(float(missed / whole), rel=1e-4)
    assert measured.norm == pytest.approx(measured.squared ** 0.5)
    assert torch.allclose(measured.p_act, kept.mean(0))


class Constant(nn.Module):
    """Its parameter does nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self, x):
        return torch.ones(len(x), 3) + 0 * (x @ self.weight)


def broken():
    module = Linear2(6, 3, 6)
    module.W_in.data[0, 0] = float("nan")
    return module


@pytest.mark.parametrize("build, x, settings, says", [
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"parameters": []}, "no parameters selected"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"parameters": ["W_on"]}, "no parameter is called 'W_on'.*W_in"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"rank": 4}, r"rank 4 does not fit axis 1 of W_in, which is \[6, 3\]"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"rank": {"W_in": (1, 1)}}, "no rank for W_out"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"rank": {"W_in": (1,)}}, "1 ranks for W_in"),
    (lambda: Linear2(6, 3, 6), noise(1, 6), {}, "1 sample: .* at least two"),
    (Constant, noise(8, 3), {}, "is zero for every sample"),
    (broken, noise(8, 6), {}, "W_in holds NaN"),
    (lambda: Linear2(6, 3, 6), noise(8, 6) * float("nan"), {}, "outputs hold NaN"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"rate": 1e30}, "became NaN or infinite in epoch"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"divergence": "mes"}, "unknown divergence 'mes'.*kl"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"loss": "l1"}, "unknown loss"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"k": 0.0}, "k=0.0"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"n": 0}, "n must be a whole number of at least 1, not 0"),
    (lambda: Linear2(6, 3, 6), noise(8, 6), {"epochs": 2.5}, "epochs must be a whole number"),
    (lambda: nn.Flatten(0), noise(8, 6), {"parameters": None}, "no parameter is called"),
    (lambda: nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2))), noise(8, 6), {}, "must be .samples, outputs."),
])
def test_bad_input_is_one_line_that_names_the_cause(build, x, settings, says):
    with pytest.raises(GimkitError, match=says) as raised:
        l3d.decompose(seeded(build), x, **{"n": 3, "epochs": 4, "progress": False, **settings})
    assert "\n" not in str(raised.value)


def test_bad_numbers_of_things():
    module = seeded(lambda: Linear2(6, 3, 6))
    with pytest.raises(GimkitError, match="8, 7"):
        l3d.decompose(module, (noise(8, 6), noise(7, 6)), n=3, progress=False)
    with pytest.raises(GimkitError, match="as many of each"):
        l3d.decompose_alike([module], [noise(8, 6)], seeds=[0], n=3, progress=False)
    found = l3d.decompose(module, noise(8, 6), n=3, epochs=1, progress=False)
    with pytest.raises(GimkitError, match="a subnetwork must be a whole number from 0 to 2, not 3"):
        found.subnetwork(3)


def test_an_nnsight_model_is_its_module():
    import nnsight

    module = seeded(MODELS["two layers"][0])
    a, b = (l3d.decompose(m, noise(8, 6), n=2, epochs=1, progress=False) for m in (module, nnsight.NNsight(module)))
    assert torch.equal(a.errors, b.errors)


def test_a_users_edits_are_refused():
    model = gimkit.load("mini-gpt2")
    with model.edit() as (tracer, edited):
        edited.transformer.h[0].mlp.output = edited.transformer.h[0].mlp.output * 2
    with pytest.raises(GimkitError, match="nnsight edits do not act"):
        l3d.NextToken(edited)
