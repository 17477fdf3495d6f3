"""L3D's figures: toys, attention blocks, digits, and L3D compared with GIM.

Each function of a `Request` returns (figure, table, alternative text).
"""

import pandas
import torch

import gimkit
from benchmarks.l3d_runs import runs
from figures import l3d_heads
from figures.parts import FOLDER, Request
from gimkit import plots
from gimkit.l3d import Decomposition, decompose, language, recovery
from gimkit.l3d import interventions as moves
from gimkit.l3d.toys import FAMILIES
from gimkit.model.architecture import architecture_of
from gimkit.plots.style import panels

TOYS = FOLDER / "data" / "l3d"  # stored with the figures, because the full runs take half an hour
SHOWN = {"tms": "superposition", "superposed": "circuits in superposition", "high rank": "groups of five inputs",
         "squared": "squares"}
SETTINGS = {"paper": "1000 epochs", "short": "100 epochs", "divergence of the code": "code's divergence, 100 epochs",
            "divergence of the code, long": "code's divergence, 1000 epochs"}  # in words; other variants say it
TARGETS = {"superposition, 1000 epochs": 0.19, "superposition, code's divergence, 100 epochs": 0.19,
           "circuits in superposition, 1000 epochs": 0.064,
           "circuits in superposition, code's divergence, 100 epochs": 0.064,
           "circuits in superposition, code's divergence, 1000 epochs": 0.064, "squares, 100 epochs": 0.32}


def _toy_runs(name: str) -> pandas.DataFrame:
    """The full runs of a toy, five seeds for each variant; measured where they are not stored yet."""
    return runs.run(name, folder=TOYS)


def subnetworks(_: Request):
    """Which inputs each subnetwork reads, for four toys."""
    figure, axes = panels(4, 14, 3.6, width_ratios=[1, 1.4, 2.4, 1])
    rows, notes = [], []
    for (name, title), ax in zip(SHOWN.items(), axes):
        _toy_runs(name)
        toy, found = runs.middle(name, TOYS)
        first = "layers.0.weight" if name == "squared" else "W_in"
        table = plots.reads(found, first, inputs_first=name != "squared")
        names = [f"{i} ({p:.2f})" for i, p in enumerate(found.p_act.tolist())]
        plots.reading_grid(table, names, title, ax)
        rows += [{"toy": name, "subnetwork": i, "p_act": float(found.p_act[i]), "input": j, "reads": table[i, j]}
                 for i in range(len(found)) for j in range(table.shape[1])]
        cosines, _ = recovery.match_circuits(found.decoder, recovery.planted(toy))
        notes.append(f"{title}: cosine with the planted circuits {cosines.mean():.2f} on average, lowest "
                    f"{cosines.min():.2f}; {int(found.dead.sum())} of {len(found)} dead")
    axes[0].set_ylabel("subnetwork (P_act)")
    alt = ("Grids of how much each subnetwork's first layer reads each input, of the seed with the median error. "
           + "; ".join(notes) + ".")
    return figure, pandas.DataFrame(rows), alt


def encoder(_: Request):
    """The encoder's directions of superposition, and those of the subnetworks."""
    _toy_runs("tms")
    toy, found = runs.middle("tms", TOYS)
    original = toy.module.W_in
    rows = []
    for which in range(len(found)):
        part = found.subnetwork(which)["W_in"]
        feature = int(part.norm(dim=1).argmax())
        direction = part[feature]
        scaled = direction * (original[feature] @ direction) / direction.square().sum()
        rows.append({"subnetwork": which, "feature": feature, "x": float(scaled[0]), "y": float(scaled[1]),
                     "cosine": float(torch.cosine_similarity(original[feature], direction, dim=0).abs())})
    frame = pandas.DataFrame(rows)
    figure, (ax,) = panels(1, 4.4, 4.4)
    plots.encoder_plane(original.numpy(), frame[["x", "y"]].to_numpy(), ax)
    alt = (f"The five directions of the toy's encoder in the plane of its two hidden units, and the subnetworks' on "
           f"top of them: |cosine| from {frame.cosine.min():.4f} to {frame.cosine.max():.4f}; "
           f"{frame.feature.nunique()} of 5 inputs have a subnetwork.")
    return figure, frame, alt


def interventions(_: Request):
    """Moving along a subnetwork: the samples and outputs that change, with a random direction as the control."""
    figure, axes = panels(4, 15, 3.4)
    deltas, frames, notes = torch.linspace(-3, 3, 31), [], []
    for name, pair, few in (("tms", axes[:2], (-1.0, 1.0)), ("squared", axes[2:], (-0.3, 0.3))):
        _toy_runs(name)
        toy, found = runs.middle(name, TOYS)
        _, which = recovery.match_circuits(found.decoder, recovery.planted(toy))
        circuit, spread = 1, deltas if name == "tms" else deltas / 3
        direction, x = found.subnetwork(which[circuit]), toy.inputs(1000, seed=2)
        change = moves.sweep(toy.module, direction, spread, x)
        control = moves.sweep(toy.module, moves.random_like(direction), spread, x)
        far = moves.change(toy.module, direction, few[1], x)
        plots.change_scatter(x[:, circuit].numpy(), far.numpy(), (x[:, circuit] != 0).numpy(), pair[0],
                                 f"input {circuit}")
        pair[0].set_title(f"{SHOWN[name]}: circuit {circuit}, delta {few[1]:g}", fontsize=10)
        plots.sweep_lines(spread.numpy(), change.numpy(), circuit, control.numpy(), pair[1])
        pair[1].set_title(SHOWN[name], fontsize=10)
        table = moves.intervention_table(toy, found, few)
        frames.append(table)
        for label, part in table.groupby("direction", sort=False):
            notes.append(f"{SHOWN[name]}, {label}: AUROC {part.auroc.mean():.2f} for samples with the circuit's input, "
                        f"own output moved {part.own.sum() / part.others.sum():.1f} times as far as the others")
    alt = ("Left of each pair: each sample's change when the parameters move along one subnetwork, over its input; "
           "right: mean change of each output over delta. Means over circuits and both signs of delta: "
           + "; ".join(notes) + ".")
    return figure, pandas.concat(frames), alt


def coefficients(_: Request):
    """The coefficients in the subnetworks of circuits in superposition, with both divergences."""
    table = _toy_runs("superposed")
    toy, found = runs.middle("superposed", TOYS)
    stem = TOYS / "superposed-divergence-of-the-code-found"
    if not stem.with_suffix(".json").is_file():  # the same toy and seed; 100 epochs
        family = toy.family
        decompose(toy.module, toy.inputs(1000), n=family.n, rank=family.rank, seed=toy.seed, **runs.CODE).save(stem)
    figure, axes = panels(2, 9.5, 3.8)
    frames, notes = [], []
    for name, one, ax in (("the text", found, axes[0]), ("the code", Decomposition.load(stem), axes[1])):
        guessed, true = runs.coefficients(one, toy)
        r2 = runs.r_squared(guessed, true)
        plots.coefficient_scatter(guessed, true, r2, ax)
        ax.set_title(f"divergence of {name}: $r^2$ = {r2:.2f}")
        frames.append(pandas.DataFrame({"divergence": name, "true": true.ravel(), "guessed": guessed.ravel()}))
        variant = "paper" if name == "the text" else "divergence of the code"
        every = ", ".join(f"{value:.2f}" for value in table[table.variant == variant].r2)
        notes.append(f"with the divergence of {name} r^2 is {r2:.2f}" + (f" ({every} over the seeds)" if every else ""))
    alt = ("Coefficients of the subnetworks against the true ones, of the seed with the median error: "
           + "; ".join(notes) + ".")
    return figure, pandas.concat(frames), alt


def errors(_: Request):
    """The errors of all toys and variants, with the paper's."""
    tables = [_toy_runs(name) for name in FAMILIES]
    frame = pandas.concat(tables, ignore_index=True)
    toys = frame.toy.replace(SHOWN | {"tms x3": "superposition, fifteen inputs"})
    frame = frame.assign(group=toys + ", " + frame.variant.replace(SETTINGS), error=frame["squared"])
    figure, (ax,) = panels(1, 9, 1.0 + 0.34 * frame.group.nunique())
    plots.error_bars(frame, TARGETS, ax)
    means = frame.groupby("group", sort=False)["error"].mean()
    alt = ("Errors of the last epoch, squared as in the reference implementation, a dot per seed. Means: "
           + "; ".join(f"{group} {value:.3f}" + (f" (paper {TARGETS[group]:g})" if group in TARGETS else "")
                       for group, value in means.items()) + ".")
    return figure, frame.drop(columns="group"), alt


def selects(request: Request):
    """Do subnetworks of one attention block select a task?"""
    folder = FOLDER / "data" / request.label / "l3d"
    table = runs.run_real("attention", request.name, blocks=(3,), folder=folder)
    return _selection(table, f"attention of block 3 of {request.label}")


def digits(_: Request):
    """Do subnetworks of one convolution select a digit?"""
    table = runs.run_real("digits", folder=FOLDER / "data" / "l3d")
    return _selection(table, "second convolution of a small network on 8 x 8 digits")


def _selection(table: pandas.DataFrame, what: str):
    """The figure of a selection table, with its table and text."""
    figure, (ax,) = panels(1, 6.5, 1.4 + 0.36 * len(table))
    plots.selection_dots(table, ax)
    first = table.iloc[0]
    alt = (f"Dots of AUROC per kind of sample, {what}: mean {table.auroc.mean():.2f} for the best of {first.n} "
           f"subnetworks, {table.untrained_auroc.mean():.2f} for the best of as many untrained directions, "
           f"{table.shuffled_auroc.mean():.2f} with shuffled labels. Error on new samples {first.squared:.2f} squared, "
           f"{first.norm:.2f} norm; {first.dead:.0%} of the subnetworks are dead.")
    return figure, table, alt


def beside_gim(request: Request, blocks=(3,), **settings):
    """Does the subnetwork that selects IOI lie in the heads with the largest GIM scores?"""
    ioi = gimkit.tasks.ioi(request.model, n=64)
    name = "beside-gim-" + "".join(map(str, blocks))

    def measure():
        found, table = language.attention_run(request.model, blocks, **settings)
        row = table.set_index("kind").loc["ioi"]
        beside = l3d_heads.beside_gim(found, request.model, ioi, table)
        beside = beside.assign(auroc=row["auroc"], untrained_auroc=row["untrained_auroc"])
        return pandas.concat([beside, l3d_heads.head_shares(found, request.model)], axis=1)

    frame = request.part("l3d", ioi[:1], name, measure)
    chosen = int(frame.kind.fillna("").str.split(", ").map(lambda kinds: "ioi" in kinds).idxmax())
    shares = frame.loc[chosen, frame.columns.str.fullmatch(r"a\d+\.h\d+")].astype(float)
    scores = gimkit.score_nodes(request.model, ioi, method="gim")
    scores = scores.frame().set_index("node")["score"].abs()[list(shares.index)]
    figure = plots.beside_gim(shares, scores, frame.rho.tolist(), chosen, "ioi")
    others, mine = frame.rho.drop(chosen), frame.loc[chosen]
    alt = (f"The subnetwork that selects IOI best does so with AUROC {mine.auroc:.2f} on new prompts, the best "
           f"untrained direction with {mine.untrained_auroc:.2f}. Left, its share in each of {len(shares)} heads "
           f"against GIM's score of the head: rank correlation {mine.rho:.2f}. Right, the control, the same for the "
           f"other {len(others)} subnetworks: mean {others.mean():.2f}, {int((others >= mine.rho).sum())} of them at "
           "least as high.")
    return figure, frame, alt


def beside_gim_everywhere(request: Request):
    """The same for the attention of all blocks, decomposed at once."""
    blocks = range(len(architecture_of(request.model).blocks))
    return beside_gim(request, tuple(blocks), prompts=32, epochs=20, every=2)
