"""Training the encoder and the decoder of subnetworks on gradients, epoch by epoch."""

from dataclasses import asdict, dataclass

import torch
from torch.func import vmap
from tqdm.auto import tqdm

from gimkit.errors import GimkitError, check_number, check_whole
from gimkit.l3d import files, tucker
from gimkit.l3d.gradients import others
from gimkit.l3d.sparse import energies, reconstruct


@dataclass(frozen=True)
class Settings:
    """How a decomposition is trained; the defaults are the paper's for toy models (its section "L3D Model Training").

    n: subnetworks. rank: a number, of every axis of every tensor but vectors, which get 1; or {name: (R1, ..., RN)}.
    divergence: a name in `DIVERGENCES`. k: the share of a batch's coefficients that is kept. epochs. batch: samples.
    rate: AdamW's, times `decay` every `every` epochs (the text says steps, the code epochs). weight_decay: AdamW's
    (0 makes it Adam, which the code has). warm: epochs at the start with k = 0.999 (the code's; the text
    does not mention them). loss: "norm", |g - g^| / |g| over the batch (the text), or "squared", its square (the code).
    """

    n: int
    rank: int | dict = 1
    divergence: str = "mse"
    k: float = 0.1
    epochs: int = 1000
    batch: int = 32
    rate: float = 0.01
    decay: float = 0.8
    every: int = 100
    weight_decay: float = 0.01
    warm: int = 1
    loss: str = "norm"

    def __post_init__(self):
        for name, low in (("n", 1), ("epochs", 1), ("batch", 2), ("every", 1)):
            check_whole(name, getattr(self, name), low)
        if not 0 < check_number("k", self.k) <= 1:
            raise GimkitError(f"k={self.k}: it is the share of coefficients that are kept, above 0 and at most 1")
        if self.loss not in ("norm", "squared"):
            raise GimkitError(f"unknown loss {self.loss!r}; use norm or squared")


class Trained:
    """Encoder and decoder in training, with the optimiser and what is told of the epochs so far.

    seeds: one, or several that are trained at once; then every factor has their number as its first axis.
    """

    def __init__(self, shapes, ranks, settings: Settings, seeds: list[int]):
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
        self.errors: list[torch.Tensor] = []  # per epoch [2] or [seeds, 2]: means over batches, "norm" and "squared"
        self.p_act = None  # share of the last epoch's samples for which a subnetwork was kept, [v] or [seeds, v]

    def each(self, function, **options):
        """The function, or the same for all seeds at once."""
        return vmap(function, **options) if self.many else function

    def epoch(self, gradients_at, samples: int, told: str) -> None:
        """One pass over the samples, in an order that seed and epoch decide."""
        number, settings = len(self.errors), self.settings
        draws = [torch.Generator().manual_seed(1_000_003 * (seed + 1) + number) for seed in self.seeds]
        order = torch.stack([torch.randperm(samples, generator=draw) for draw in draws])
        references = torch.stack([others(samples, draw) for draw in draws]).gather(1, order)
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
            self._normalise()
            errors = errors + torch.stack([norm.detach(), squared.detach()], -1)
            used, energy, batches = used + kept, energy + whole, batches + 1
        if not bool((energy > 0).all()):
            raise GimkitError(f"{told} is zero for every sample: the output does not depend on the chosen parameters, "
                              "or it is the same for all inputs")
        if not bool(errors.isfinite().all()):
            raise GimkitError(f"{told} or its reconstruction became NaN or infinite in epoch {number}; check the "
                              "model, or lower the rate")
        self.errors.append(errors / batches)
        self.p_act = used / samples

    @torch.no_grad()
    def _normalise(self) -> None:
        """The decoder's directions back to norm 1; the encoder's are left as they are."""
        if not self.many:
            return tucker.normalise(self.decoder)
        scale = vmap(tucker.norms)(self.decoder)
        tucker.divide(self.decoder, torch.where(scale > 0, scale, 1))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that training goes on from, by name."""
        found = {"errors": torch.stack(self.errors), "p_act": self.p_act}
        for name, directions in (("encoder", self.encoder), ("decoder", self.decoder)):
            found |= {f"{name}.{t}.{i}": part.detach() for t, factors in enumerate(directions)
                      for i, part in enumerate(factors)}
        for i, part in enumerate(self.flat):
            found |= {f"adamw.{i}.{key}": value for key, value in self.optimiser.state[part].items()}
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.errors, self.p_act = list(tensors["errors"]), tensors["p_act"]
        for name, directions in (("encoder", self.encoder), ("decoder", self.decoder)):
            for t, factors in enumerate(directions):
                for i, part in enumerate(factors):
                    part.copy_(tensors[f"{name}.{t}.{i}"])
        for i, part in enumerate(self.flat):
            mine = f"adamw.{i}."
            self.optimiser.state[part] = {key.removeprefix(mine): value.clone() for key, value in tensors.items()
                                          if key.startswith(mine)}


def train(state: Trained, gradients_at, samples: int, checkpoint=None, progress: bool = True) -> Trained:
    """Train to the last epoch, from the checkpoint where there is one.

    >>> train(Trained(shapes, ranks, Settings(n=5), seeds=[0]), gradients_at, samples=1000)

    gradients_at(rows, references): the batch's gradients, a tensor [b, *shape] per parameter, given which samples and
    which other samples' outputs. checkpoint: (path, what is written beside it), or None.
    """
    told = "the gradient of the divergence"
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
            state.epoch(gradients_at, samples, told)
            bar.update()
            bar.set_postfix(error=f"{float(state.errors[-1][..., 0].mean()):.3f}", refresh=False)
            if checkpoint:
                files.write(path, about, state.tensors())
    return state


def settings_of(settings: Settings) -> dict:
    """The settings as JSON takes them."""
    return {key: list(map(list, value.items())) if isinstance(value, dict) else value
            for key, value in asdict(settings).items()}
