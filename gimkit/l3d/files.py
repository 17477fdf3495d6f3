"""Decompositions and toys on disk: tensors in NAME.safetensors, their description in NAME.json."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gimkit.errors import GimkitError
from gimkit.files import atomic_write, write_text


def write(path: str | Path, about: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Write both files. Each one is replaced as a whole, so an interrupted run leaves the last good files.

    The tensor file holds a hash of the tensors and of the description, so that files of two runs are not mixed up.

    >>> write("run", {"kind": "gimkit l3d"}, {"a": torch.zeros(2)})
    >>> read("run")
    ({'kind': 'gimkit l3d'}, {'a': tensor([0., 0.])})

    Args:
        path: NAME, with or without one of the two endings.
        about: the description, as JSON takes it; its "kind" is "gimkit l3d".
        tensors: tensors of any shape by name.
    """
    file, description = _paths(path)
    text = json.dumps(about, indent=1) + "\n"
    if not description.is_file() or description.read_bytes() != text.encode():
        write_text(description, text)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(file) as new:
        save_file(tensors, new, metadata={"sha256": _digest(text, tensors)})


def read(path: str | Path) -> tuple[dict, dict[str, torch.Tensor]] | None:
    """What `write` wrote, (about, tensors); None where there is no tensor file.

    >>> read("nothing") is None
    True

    Args:
        path: as in `write`.

    Raises:
        GimkitError: the files are damaged, do not belong together, or describe something else.
    """
    file, description = _paths(path)
    if not file.is_file():
        return None
    try:
        text = description.read_text(encoding="utf-8")
        about = json.loads(text)
        with safe_open(file, "pt") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}
            stamp = (opened.metadata() or {}).get("sha256")
    except Exception as error:  # safetensors raises its own, undocumented class
        reason = str(error).partition("\n")[0]
        raise GimkitError(f"{file} and {description.name} are not a decomposition that gimkit wrote ({reason}); "
                          "delete them to start again") from error
    if not isinstance(about, dict) or about.get("kind") != "gimkit l3d":
        raise GimkitError(f"{description} does not describe a decomposition; choose another name")
    if stamp != _digest(text, found):
        raise GimkitError(f"{file} and {description.name} do not belong together, or were changed; delete them to "
                          "start again")
    return about, found


def _paths(path) -> tuple[Path, Path]:
    """NAME.safetensors and NAME.json, for NAME or either of them."""
    name = str(path).removesuffix(".safetensors").removesuffix(".json")
    return Path(f"{name}.safetensors"), Path(f"{name}.json")


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    """A hash of a description and of tensors with their names, types and shapes."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
