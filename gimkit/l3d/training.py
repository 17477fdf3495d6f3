"""L3D's training: an encoder and a decoder of sparse, low-rank directions, trained to rebuild gradients."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.func import vmap
from tqdm.auto import tqdm

from gimkit.errors import GimkitError, check_known, check_number, check_whole
from gimkit.l3d import files, tucker
from gimkit.l3d.gradients import Divergence, random_references
from gimkit.l3d.tucker import Factors, combine, inner

Loss = Literal["norm", "squared"]


def largest(h: torch.Tensor, k: float) -> torch.Tensor:
    """Which coefficients belong to the share k with the largest |h| of the whole batch, [b, v], as 0 and 1.

    >>> largest(torch.tensor([[3.0, 1.0], [0.5, -2.0]]), 0.5)
    tensor([[1., 0.],
            [0., 1.]])

    The int(k b v) largest are kept, at least one; ties with the last one are kept too, zeros never.

    Args:
        h: coefficients [b, v].
        k: a share, above 0 and at most 1.

    Source:
        batch top-k in section 2 of arXiv 2504.00194. The reference implementation keeps one more: its threshold
        is the next value, and is kept itself.
    """
    size = h.detach().abs()
    threshold = size.flatten().topk(max(1, int(k * size.numel()))).values[-1]
    return ((size >= threshold) & (size > 0)).to(h.dtype)


def reconstruct(encoder: list[Factors], decoder: list[Factors], gradients: list[torch.Tensor],
                k: float) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Encode gradients, keep the batch's largest coefficients, decode.

    >>> rebuilt, h, kept = reconstruct(found.encoder, found.decoder, [torch.ones(7, 5, 2), torch.ones(7, 2, 5),
    ...                                                               torch.ones(7, 5)], k=0.1)
    >>> rebuilt[0].shape, h.shape, int(kept.sum())
    (torch.Size([7, 5, 2]), torch.Size([7, 5]), 7)

    Args:
        encoder, decoder: v directions each, V_in and V_out.
        gradients: a tensor [b, *shape] per parameter.
        k: as in `largest`.

    Returns:
        Reconstructions [b, *shape]; h [b, v]; which coefficients were kept, [b, v].

    Source:
        h = V_in g and g^ = V_out^T (h * kept), section 2 of arXiv 2504.00194.
    """
    h = inner(encoder, gradients)
    kept = largest(h, k)
    return combine(decoder, h * kept), h, kept


def energies(gradients: list[torch.Tensor], reconstructions: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch's sums of squares: of what is missed, |g - g^|^2, and of all, |g|^2.

    >>> energies([torch.ones(2, 3)], [torch.zeros(2, 3)])
    (tensor(6.), tensor(6.))
    """
    missed = sum((gradient - found).square().sum() for gradient, found in zip(gradients, reconstructions))
    return missed, sum(gradient.square().sum() for gradient in gradients)


@dataclass(frozen=True)
class Settings:
    """How a decomposition is trained; the defaults are the paper's for toy models.

    >>> Settings(n=5).epochs
    1000

    Args:
        n: subnetworks.
        rank: of every axis of every tensor; vectors have rank 1. Or {name: (R1, ..., RN)}.
        divergence: a name in `gimkit.l3d.gradients.DIVERGENCES`.
        k: the share of a batch's coefficients that is kept.
        epochs: passes over the samples.
        batch: samples in a batch.
        rate: AdamW's learning rate.
        decay, every: the rate is multiplied by `decay` every `every` epochs.
        weight_decay: AdamW's.
        warm: epochs at the start with k = 0.999.
        loss: "norm", |g - g^| / |g| over the batch, or "squared", its square.

    Source:
        "L3D Model Training" in arXiv 2504.00194. The reference implementation differs from that text: it has Adam
        (`weight_decay=0`) and `loss="squared"`, counts `every` in epochs where the text says steps, and warms up,
        which the text does not mention. `every` and `warm` follow the code, the others the text.
    """

    n: int
    rank: int | dict = 1
    divergence: Divergence = "mse"
    k: float = 0.1
    epochs: int = 1000
    batch: int = 32
    rate: float = 0.01
    decay: float = 0.8
    every: int = 100
    weight_decay: float = 0.01
    warm: int = 1
    loss: Loss = "norm"

    def __post_init__(self) -> None:
        for name, low in (("n", 1), ("epochs", 1), ("batch", 2), ("every", 1)):
            check_whole(name, getattr(self, name), low)
        if not 0 < check_number("k", self.k) <= 1:
            raise GimkitError(f"k={self.k}: it is the share of coefficients that are kept, above 0 and at most 1")
        check_known("loss", self.loss, get_args(Loss))


class Trained:
    """Encoder and decoder in training, with the optimiser and the errors of the epochs so far.

    >>> Trained([(5, 2), (5,)], [(1, 1), (1,)], Settings(n=3), seeds=[0]).decoder[0][1].shape
    torch.Size([3, 1, 5])

    Args:
        shapes: of the parameter tensors.
        ranks: of each tensor, one number per axis.
        settings: of the training.
        seeds: one, or several that are trained at once; then every factor has the seeds as its first axis.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], ranks: Sequence[tuple[int, ...]], settings: Settings,
                 seeds: list[int]) -> None:
        drawn = []
        for seed in seeds:
            directions = tucker.draw(shapes, ranks, settings.n, torch.Generator().manual_seed(seed))
            tucker.normalise(directions)
            drawn.append(directions)
        self.settings, self.seeds, self.many = settings, seeds, len(seeds) > 1
        self.decoder = drawn[0] if not self.many else [
            tuple(torch.stack(parts) for parts in zip(*factors)) for factors in zip(*drawn)]
        self.encoder = [tuple(part.clone() for part in factors) for factors in self.decoder]
        self.flat = [part.requires_grad_(True) for factors in self.encoder + self.decoder for part in factors]
        self.optimiser = torch.optim.AdamW(self.flat, lr=settings.rate, weight_decay=settings.weight_decay, fused=True)
        self.errors: list[torch.Tensor] = []  # for each epoch [2] or [seeds, 2]: "norm" and "squared", batch means
        self.p_act = None  # share of the last epoch's samples for which a subnetwork was kept, [v] or [seeds, v]

    def each(self, function: Callable, **options: Any) -> Any:
        """The function, or the same for all seeds at once."""
        return vmap(function, **options) if self.many else function

    def epoch(self, gradients_at: Callable, samples: int) -> None:
        """One pass over the samples, in an order that seed and epoch decide; arguments as in `train`."""
        number, settings = len(self.errors), self.settings
        # Every seed has its own order and its own references.
        draws = [torch.Generator().manual_seed(1_000_003 * (seed + 1) + number) for seed in self.seeds]
        order = torch.stack([torch.randperm(samples, generator=draw) for draw in draws])
        references = torch.stack([random_references(samples, draw) for draw in draws]).gather(1, order)
        if not self.many:
            order, references = order[0], references[0]
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate * settings.decay ** (number // settings.every)
        k = 0.999 if number < settings.warm else settings.k

        def of_batch(encoder, decoder, gradients):
            rebuilt, _, kept = reconstruct(encoder, decoder, gradients, k)
            missed, whole = energies(gradients, rebuilt)
            squared = missed / whole.clamp(min=torch.finfo(whole.dtype).tiny)
            return squared, whole, kept.sum(0)

        used, errors, energy, batches = 0, 0, 0, 0
        for start in range(0, samples, settings.batch):
            now = slice(start, start + settings.batch)
            gradients = gradients_at(order[..., now], references[..., now])
            squared, whole, kept = self.each(of_batch)(self.encoder, self.decoder, gradients)
            norm = squared.clamp(min=1e-12).sqrt()
            self.optimiser.zero_grad()
            (squared if settings.loss == "squared" else norm).sum().backward()
            self.optimiser.step()
            self._normalise()  # the decoder's directions have norm 1 after every step
            errors = errors + torch.stack([norm.detach(), squared.detach()], -1)
            used, energy, batches = used + kept, energy + whole, batches + 1
        if not bool((energy > 0).all()):
            raise GimkitError("the gradient of the divergence is zero for every sample: the output does not depend on "
                              "the chosen parameters, or it is the same for all inputs")
        if not bool(errors.isfinite().all()):
            raise GimkitError("the gradient of the divergence or its reconstruction became NaN or infinite in epoch "
                              f"{number}; check the model, or lower the rate")
        self.errors.append(errors / batches)
        self.p_act = used / samples

    @torch.no_grad()
    def _normalise(self) -> None:
        """Scale the decoder's directions to norm 1; the encoder's stay as they are."""
        if not self.many:
            return tucker.normalise(self.decoder)
        scale = vmap(tucker.norms)(self.decoder)
        tucker.divide(self.decoder, torch.where(scale > 0, scale, 1))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is needed to continue the training, by name."""
        found = {"errors": torch.stack(self.errors), "p_act": self.p_act}
        for name, directions in (("encoder", self.encoder), ("decoder", self.decoder)):
            found |= {f"{name}.{t}.{i}": part.detach() for t, factors in enumerate(directions)
                      for i, part in enumerate(factors)}
        for i, part in enumerate(self.flat):
            found |= {f"adamw.{i}.{key}": value for key, value in self.optimiser.state[part].items()}
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from what `tensors` returned."""
        self.errors, self.p_act = list(tensors["errors"]), tensors["p_act"]
        for name, directions in (("encoder", self.encoder), ("decoder", self.decoder)):
            for t, factors in enumerate(directions):
                for i, part in enumerate(factors):
                    part.copy_(tensors[f"{name}.{t}.{i}"])
        for i, part in enumerate(self.flat):
            prefix = f"adamw.{i}."
            self.optimiser.state[part] = {key.removeprefix(prefix): value.clone() for key, value in tensors.items()
                                          if key.startswith(prefix)}


def train(state: Trained, gradients_at: Callable, samples: int, checkpoint: str | Path | None = None,
          progress: bool = True) -> Trained:
    """Train to the last epoch, from the checkpoint where there is one.

    >>> state = Trained([(5,)], [(1,)], Settings(n=3, epochs=2), seeds=[0])
    >>> def gradients_at(rows, references):                        # here made up, in L3D of a module
    ...     return [torch.ones(len(rows), 5)]
    >>> len(train(state, gradients_at, samples=64).errors)
    2

    Args:
        state: encoder and decoder.
        gradients_at: a function of sample indices [b] and of reference indices [b] that returns the batch's
            gradients, a tensor [b, *shape] per parameter; with several seeds all have these as a first axis.
        samples: how many there are.
        checkpoint: (path, description), or None; written after every epoch.
        progress: whether to show a bar.

    Raises:
        GimkitError: the checkpoint belongs to another decomposition, or a gradient is zero everywhere or not finite.
    """
    if checkpoint:
        path, about = checkpoint
        if (stored := files.read(path)) is not None:
            different = [key for key in about if stored[0].get(key) != about[key]]
            if different:
                raise GimkitError(f"{path} is the checkpoint of another decomposition ({', '.join(different)} differ); "
                                  "choose another name or delete it")
            state.restore(stored[1])
    done, epochs = len(state.errors), state.settings.epochs
    with tqdm(total=epochs, initial=done, desc="subnetworks", unit="epoch", disable=not progress) as bar:
        for _ in range(done, epochs):
            state.epoch(gradients_at, samples)
            bar.update()
            bar.set_postfix(error=f"{float(state.errors[-1][..., 0].mean()):.3f}", refresh=False)
            if checkpoint:
                files.write(path, about, state.tensors())
    return state


def settings_of(settings: Settings) -> dict:
    """The settings as JSON takes them.

    >>> settings_of(Settings(n=5, rank={"W_in": (1, 1)}))["rank"]
    [['W_in', (1, 1)]]
    """
    return {key: list(map(list, value.items())) if isinstance(value, dict) else value
            for key, value in asdict(settings).items()}
