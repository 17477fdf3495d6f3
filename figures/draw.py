"""Every figure by name, and the function that draws them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from figures import edges, ioi, l3d, layers, measured, repair, tokens
from figures.parts import FOLDER, SIX, TASKS, Request
from gimkit import plots
from gimkit.errors import check_all_known
from gimkit.l3d.language import TASKS as TASKS_OF_L3D


class _PaperFigure(NamedTuple):
    """A figure: the function that draws it, and its caption.

    >>> FIGURES["toy"].tasks
    ()
    """

    make: Callable  # of a `Request`, returns (matplotlib figure, plotted table, alternative text)
    paper: str  # the corresponding item of the paper
    differs: str  # the differences from it
    tasks: tuple[str, ...] = SIX  # drawn by default; empty where no model is needed
    prompts: int = 2**30  # of each task, at most
    stored: bool = False  # drawn from the csv of a benchmark
    models: str = ""  # what it was made on, where that is no model of `gimkit.load`


NO_YEARS = ("Greater-than is left out (`--tasks greater_than` draws it): it has many right years, the logit of none is "
            "far above 0, and so losses relative to it mean little.")
GP = "EAP-GP (arXiv 2502.06852), "
GIM = "GIM (arXiv 2505.17630), "
L3D = "L3D (arXiv 2504.00194), "
FIVE = ("Toys of five seeds, each the best of four starts, trained for 60 or 200 epochs instead of 1000; figure "
        "numbers are those of the public draft. ")
FIGURES = {
    "toy": _PaperFigure(
        repair.toy, GIM + "Figure 1, the idea of attention self-repair",
        "The paper's own numbers are not known; these five scores and values were made up here, with a row of one "
        "informative position as the control. Gradients are multiplied by the distance to ablation, so that they have "
        "the units of the truth.", ()),
    "ablation-effect": _PaperFigure(
        repair.ablation_effect, GIM + "the scatter `ablation_effect` of its code; its number in the paper is unknown",
        "The paper has a pair of figures for each of five hub models and six data sets; here a panel per bundled task. "
        "Few prompts of each task are used, because each has hundreds of rows.", repair.REPAIRED, repair.PROMPTS),
    "grad-vs-tsg": _PaperFigure(
        repair.grad_vs_tsg, GIM + "the scatter `grad_vs_tsg` of its code; its number in the paper is unknown",
        "As ablation-effect.", repair.REPAIRED, repair.PROMPTS),
    "ablation-effect-control": _PaperFigure(
        repair.control, GIM + "none: the control of ablation-effect",
        "Both models have the 2% of rows with the largest second contribution, whatever its size: with random weights "
        "almost none is above the threshold of the other figure.", ("ioi",)),
    "head-repair": _PaperFigure(
        repair.heads, "McGrath et al. 2023 (arXiv 2307.15771) and Rushing and Nanda 2024 (arXiv 2402.15390), the "
        "direct against the total effect of heads",
        "Heads are resampled from the pair's corrupt prompt instead of ablated over the training distribution.",
        ("ioi",)),
    "one-pass-or-five": _PaperFigure(
        measured.edges, GIM + "its table on MIB, as a question: is one GIM pass worth five of EAP-IG?",
        "Drawn from the csv of `benchmarks.compare`; benchmarks/README.md states its prompts and draws. The kit's own "
        "tasks, with MIB's sizes and areas. The paper's table has not been seen.", (), stored=True),
    "nodes-by-depth": _PaperFigure(
        measured.nodes, GIM + "none: the kit's own question, why GIM's ranks of nodes suffer",
        "Drawn from the csv of `benchmarks.patched_nodes`, whose prompts and draws benchmarks/README.md states.", (),
        stored=True),
    "planted": _PaperFigure(
        measured.planted, "MIB (arXiv 2504.13151), its AUROC on InterpBench's model (arXiv 2407.14494)",
        "Drawn from the csv of `benchmarks.planted`; benchmarks/README.md states its models, truths and prompts. "
        "InterpBench's own model was not available; AUROC counts every edge once, MIB's variant is in the csv.", (),
        stored=True, models="models of benchmarks/planted"),
    "rules-searched": _PaperFigure(
        measured.rules, GIM + "none: which of its rules are best, for edges and for nodes",
        "Drawn from the csv of `benchmarks.search`; docs/METHODS.md states its settings and halves. Act(x) / x and "
        "halved gates are not told apart; constant attention patterns, far off to the right, are out.", (), stored=True,
        models="three models and the planted circuits"),
    "ioi-circuit": _PaperFigure(
        ioi.circuit, "Wang et al. 2022 (arXiv 2211.00593), the circuit of GPT-2 small",
        "Roles by stated thresholds of attention and of effects instead of by reading; a step is cut on its direct "
        "edges alone. A dot is the mean over draws and a line goes from the lowest to the highest; hollow: not on all "
        "draws.", ("ioi",)),
    "temperature-sweep": _PaperFigure(
        tokens.temperature_sweep, GIM + "the temperature sweep (`hyperparameter.py`); its number in the paper is "
        "unknown",
        "Norms frozen and products split throughout, as there. The paper's prompts are six classification data sets; "
        "here they are short, so comprehensiveness is averaged over the k that exist. " + NO_YEARS),
    "ablation-ladder": _PaperFigure(
        tokens.ablation_ladder, GIM + "the ablation bars (`ablation_table_mean.py`) and the ablation table of eight "
        "rows; their numbers in the paper are unknown",
        "The paper's bars show two of the eight rule subsets, over data sets; here all seven that are not gradient x "
        "input, a dot per task instead of a box. Gradient x input is (embedding - baseline) times gradient, as every "
        "method here. " + NO_YEARS),
    "token-faithfulness": _PaperFigure(
        tokens.token_faithfulness, GIM + "the tables of comprehensiveness and sufficiency (`aopc_table.py`); their "
        "numbers are unknown",
        "Six bundled tasks instead of six data sets, one model. AttnLRP is the kit's rule set, not the LXT package; "
        "IG has 20 steps instead of 50; AtP* (the paper's, of its layer experiment), RelP and occlusion are beside it, "
        "and two controls: random scores, and GIM's own, shuffled over the tokens. LIME and KernelSHAP need captum. "
        + NO_YEARS),
    "layers": _PaperFigure(
        layers.layers, GIM + "first version, the layer curves (`layers_aopc.py`); their number is unknown",
        "One model, all tasks' prompts together. What is called AtP* there gives the softmax the difference of two "
        "patterns for a gradient; that the second is of the run with all positions of the layer at their mean is our "
        "reading. IG has 20 midpoints instead of 50 steps. "
        + NO_YEARS),
    "eap-gp-saturation": _PaperFigure(
        edges.saturation, GP + "the picture of saturation; whether it is a figure there, and its number, are unknown",
        "One bundled task; the paper's prompts, model and axes are not known.", ("ioi",)),
    "eap-gp-faithfulness": _PaperFigure(
        measured.sizes, GP + "faithfulness against the number of edges on its six tasks; number and layout unknown",
        "Drawn from the csv of `benchmarks.compare`; benchmarks/README.md states its prompts and draws. One small "
        "model instead of three sizes of GPT-2; the kit's own prompts; GIM is beside it. Circuits are the edges with "
        "the largest |score|.", (), stored=True),
    "eap-gp-runtime": _PaperFigure(
        measured.runtime, GP + "its comparison of run times; number and layout unknown",
        "Drawn from the csv of `benchmarks.compare`: CPU seconds on a shared machine, as multiples of EAP's on the "
        "same prompts. All gradient methods have the kit's batched edge scores.", (), stored=True),
    "l3d-subnetworks": _PaperFigure(
        l3d.subnetworks, L3D + "Figures 3, 5, 7 and 8, the decompositions of the toys",
        FIVE + "A grid of what the first layer reads instead of drawings of all weights; rows have P_act behind them. "
        "Groups and squares are decomposed for 100 epochs instead of 1000.", ()),
    "l3d-encoder": _PaperFigure(
        l3d.encoder, L3D + "Figure 2, encoder directions of superposition",
        FIVE + "Subnetworks are scaled and signed, which the method leaves open.", ()),
    "l3d-interventions": _PaperFigure(
        l3d.interventions, L3D + "Figures 4 and 9, interventions on superposition and on squares",
        FIVE + "One circuit of each is drawn, all are in the table and the numbers; a random direction of equal norm "
        "is the control.", ()),
    "l3d-coefficients": _PaperFigure(
        l3d.coefficients, L3D + "Figure 6, coefficients of circuits in superposition",
        FIVE + "The reference implementation's notebook prints a correlation under the name r^2; here r^2 is its "
        "square, so that its .92 is .85 here. The right panel has the divergence of that code, and 100 epochs.", ()),
    "l3d-errors": _PaperFigure(
        l3d.errors, L3D + "the reported errors, and the supplement's errors by rank and by number of subnetworks",
        FIVE + "The paper has one seed and does not say which of its two errors a number is; the squared one, of the "
        "code, fits them. \"Paper\" and \"long\" have 1000 epochs, the others 100.", ()),
    "l3d-attention": _PaperFigure(
        l3d.selects, L3D + "the table of transformer circuits",
        "The paper shows top texts of chosen circuits; here the subnetwork that selects each task best is found, "
        "with two controls. A block of a small model on the kit's prompts, 24 subnetworks of rank 2 instead of 100 of "
        "rank 25.", TASKS_OF_L3D),
    "l3d-digits": _PaperFigure(
        l3d.digits, L3D + "the figure of CNN circuits",
        "A network of two convolutions trained here on 8 x 8 digits instead of mobilenet-v3-small on CIFAR-100, and "
        "numbers instead of chosen images. 20 of 100 epochs keep all coefficients; with one of them, as for toys, "
        "three quarters of the subnetworks end dead.", ()),
    "l3d-beside-gim": _PaperFigure(
        l3d.beside_gim, L3D + "none: the kit's own question",
        "L3D on the attention of block 3, GIM's scores of the same heads on 64 prompts of the task. Four heads allow "
        "only 24 orders; the other subnetworks show how often one occurs by chance.", ("ioi",)),
    "l3d-beside-gim-everywhere": _PaperFigure(
        l3d.beside_gim_everywhere, L3D + "none: the kit's own question",
        "As l3d-beside-gim, on the attention of all blocks at once, for 20 epochs.", ("ioi",)),
}


def draw(names, name: str = "mini-llama", n: int = 12, seed: int = 0, tasks=()) -> list[Path]:
    """Draw figures, write their files and their captions; return the paths of the png files.

    >>> draw(["toy"])
    wrote figures/toy.png
    [PosixPath('figures/toy.png')]

    Measured parts are kept in runs/figures, and read back when model, prompts and settings are the same.

    Args:
        names: of FIGURES; empty for all but those that are drawn from a benchmark's csv.
        name: the model, as in `gimkit.load`.
        n, seed: of each task's prompts.
        tasks: names of tasks, instead of those of each figure.
    Raises:
        GimkitError: there is no such figure or task.
    """
    for given, known, what in ((names, FIGURES, "figure"), (tasks, TASKS, "task")):
        check_all_known(what, given, known)
    request, drawn = Request(name, n, seed, tuple(tasks)), []
    for wanted in names or [known for known, figure in FIGURES.items() if not figure.stored]:
        chosen = FIGURES[wanted]
        figure, frame, alt = chosen.make(request)
        stem = f"{wanted}-{request.label}" if (chosen.tasks or chosen.stored) and not chosen.models else wanted
        made = f"{chosen.models or name}, by the benchmark" if chosen.stored else "no model" if not chosen.tasks else (
            f"{name}, {min(n, chosen.prompts)} prompts of each of {', '.join(request.chosen(chosen.tasks))}, "
            f"seed {seed}")
        drawn.append(plots.save(figure, FOLDER / stem, frame, alt, Paper=f"{chosen.paper}.", Made_on=f"{made}.",
                                Differs=chosen.differs))
        print(f"wrote {drawn[-1]}", flush=True)
    return drawn
