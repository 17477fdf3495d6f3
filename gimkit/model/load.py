"""Loading a model into nnsight: a bundled one, a local folder, or a hub id."""

from difflib import get_close_matches
from pathlib import Path

import torch

from gimkit.errors import GimkitError

BUNDLED = ("mini-gpt2", "mini-llama")


def load(name: str, *, remote: bool | str = False, **kwargs):
    """An nnsight `TransformersModel` for text generation, in float32 unless told otherwise.

    >>> model = gimkit.load("mini-gpt2")                       # bundled, needs no network
    >>> type(model).__name__, model._module.num_parameters()
    ('TransformersModel', 1071616)
    >>> client = gimkit.load("mini-gpt2", remote=True)         # config and tokenizer only, for running on a server
    >>> client.dispatched
    False

    name: "mini-gpt2" or "mini-llama"; a folder that `save_pretrained` wrote; or an id on the Hugging Face hub, such as
    "openai-community/gpt2". remote: leave the weights out, for a model that only ever runs on a server. kwargs: go to
    nnsight's TransformersModel, for example dtype=torch.bfloat16 or device_map="auto". The weights take no gradients
    (`model._module.requires_grad_(True)` brings them back).
    Raises GimkitError for a name that is neither bundled, a folder with a model, nor to be had from the hub.
    """
    from nnsight import TransformersModel  # here, because it takes seconds
    from transformers.utils import logging

    if name in BUNDLED:
        source = str(Path(__file__).parent / "bundled" / name)
    elif Path(name).expanduser().is_dir():
        source = str(Path(name).expanduser())
        if not (Path(source) / "config.json").is_file():
            raise GimkitError(f"no config.json in the folder {name!r}: give one that save_pretrained wrote")
    elif "/" not in name and (name.startswith("mini") or get_close_matches(name, BUNDLED, cutoff=0.75)):
        raise GimkitError(f"unknown model {name!r}; bundled models: {', '.join(BUNDLED)}")
    else:
        source = name
    options = {"task": "text-generation", "dtype": torch.float32, "dispatch": not remote} | kwargs
    noisy = logging.is_progress_bar_enabled()
    try:
        if name in BUNDLED:  # loaded in an instant
            logging.disable_progress_bar()
        model = TransformersModel(source, **options)
    except (OSError, ConnectionError) as error:
        if source != name:
            raise
        reason = str(error).strip().splitlines()[0]
        raise GimkitError(
            f"cannot load {name!r} from the Hugging Face hub ({reason}): check the name and the network, "
            f"or use a local folder or a bundled model ({', '.join(BUNDLED)})") from error
    finally:
        if noisy:
            logging.enable_progress_bar()
    model._module.requires_grad_(False)  # attribution needs no gradients of weights
    return model
