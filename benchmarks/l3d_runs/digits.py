"""A small convolutional network, trained on scikit-learn's 8 x 8 digits, and the circuits of one layer."""

import pandas
import torch
from torch import nn

from gimkit.errors import GimkitError
from gimkit.l3d.decomposition import Decomposition, decompose
from gimkit.l3d.selection import selection_with_controls

SETTINGS = {"n": 24, "rank": 2, "divergence": "kl", "epochs": 100, "rate": 0.005, "every": 10,
            "warm": 20}  # with one warm epoch three quarters of the subnetworks are dead at the end, with 20 a third


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits, images from 0 to 1 and classes; they come with the package.

    >>> x, y = _images()
    >>> x.shape, y.shape
    (torch.Size([1797, 1, 8, 8]), torch.Size([1797]))

    Raises:
        GimkitError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise GimkitError("the digits need scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)


@torch.inference_mode(False)
@torch.enable_grad()
def network(seed: int = 0, epochs: int = 15) -> tuple[nn.Module, float, torch.Tensor]:
    """A network of two convolutions and one linear layer, trained on two thirds of the digits.

    >>> module, accuracy, order = network(epochs=1)

    Args:
        seed: of the start and the order of the images.
        epochs: passes over the training images.
    Returns:
        The module, its accuracy on the last third, and the order of the images; the first two thirds were for training.
    """
    x, y = _images()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                               nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                               nn.Linear(64, 10))
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draw)
    trained, rest = order[:1200], order[1200:]
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in trained[torch.randperm(len(trained), generator=draw)].split(32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimiser.step()
    module.eval().requires_grad_(False)
    return module, float((module(x[rest]).argmax(1) == y[rest]).float().mean()), order


def digits_run(seed: int = 0, checkpoint=None, progress: bool = True,
               **settings) -> tuple[Decomposition, pandas.DataFrame, float]:
    """Decompose the second convolution, and test whether its subnetworks select a digit.

    For example `found, table, accuracy = digits_run()`, which takes minutes.

    Args:
        seed, checkpoint, progress: as in `gimkit.l3d.decompose`.
        settings: fields of `gimkit.l3d.training.Settings`; the others are those of SETTINGS.
    Returns:
        The decomposition; the table of `selection_with_controls`, on images that are new to the network and to the
        subnetworks; the network's accuracy on them.
    """
    module, accuracy, order = network(seed)
    (x, y), parts = _images(), (order[:1200], order[1200:])
    found = decompose(module, x[parts[0]], parameters="3.*", seed=seed, checkpoint=checkpoint, progress=progress,
                      **SETTINGS | settings)
    table = selection_with_controls(found, module, [x[rows] for rows in parts],
                                    [[str(int(d)) for d in y[rows]] for rows in parts], seed)
    return found, table.sort_values("kind", ignore_index=True), accuracy
