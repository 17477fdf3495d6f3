"""Decompositions on disk: tensors in NAME.safetensors, what they are in NAME.json."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gimkit.errors import GimkitError


def write(path: Path, about: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Write both files; each is replaced whole, so that a run cut off in between leaves the last good ones."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(about, indent=1) + "\n"
    described = path.with_suffix(".json")
    if not described.is_file() or described.read_text(encoding="utf-8") != text:
        new = path.with_suffix(".json.new")
        new.write_text(text, encoding="utf-8")
        new.replace(described)
    new = path.with_suffix(".safetensors.new")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, new)
    new.replace(path.with_suffix(".safetensors"))


def read(path: Path) -> tuple[dict, dict[str, torch.Tensor]] | None:
    """What `write` wrote, (about, tensors); None where there is nothing.

    Raises GimkitError for files that are damaged or not a decomposition.
    """
    path = Path(path)
    tensors, described = path.with_suffix(".safetensors"), path.with_suffix(".json")
    if not tensors.is_file() or not described.is_file():
        return None
    try:
        about = json.loads(described.read_text(encoding="utf-8"))
        found = load_file(tensors)
    except Exception as error:  # safetensors raises its own, undocumented class
        raise GimkitError(f"{tensors} and {described.name} are not a decomposition that gimkit wrote ({error}); "
                          "delete them to start anew") from error
    if not isinstance(about, dict) or about.get("kind") != "gimkit l3d":
        raise GimkitError(f"{described} does not describe a decomposition; choose another name")
    return about, found
