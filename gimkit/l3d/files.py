"""Decompositions on disk: tensors in NAME.safetensors, what they are in NAME.json."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gimkit.errors import GimkitError
from gimkit.files import atomic_write, write_text


def write(path: Path, about: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Write both files; each is replaced whole, so that a run cut off in between leaves the last good ones.

    The tensors' file holds a hash of them and of the description, so that the two cannot be mixed up.
    """
    file, described = pair(path)
    text = json.dumps(about, indent=1) + "\n"
    if not described.is_file() or described.read_bytes() != text.encode():
        write_text(described, text)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(file) as new:
        save_file(tensors, new, metadata={"sha256": digest(text, tensors)})


def pair(path) -> tuple[Path, Path]:
    """NAME.safetensors and NAME.json, for NAME or either of them."""
    name = str(path).removesuffix(".safetensors").removesuffix(".json")
    return Path(f"{name}.safetensors"), Path(f"{name}.json")


def digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    """A hash of a description and of tensors with their names, types and shapes."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def read(path: Path) -> tuple[dict, dict[str, torch.Tensor]] | None:
    """What `write` wrote, (about, tensors); None where there are no tensors.

    Raises GimkitError for files that are damaged, do not belong together or are not a decomposition.
    """
    file, described = pair(path)
    if not file.is_file():
        return None
    try:
        text = described.read_text(encoding="utf-8")
        about = json.loads(text)
        with safe_open(file, "pt") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}
            stamp = (opened.metadata() or {}).get("sha256")
    except Exception as error:  # safetensors raises its own, undocumented class
        reason = str(error).partition("\n")[0]
        raise GimkitError(f"{file} and {described.name} are not a decomposition that gimkit wrote ({reason}); "
                          "delete them to start anew") from error
    if not isinstance(about, dict) or about.get("kind") != "gimkit l3d":
        raise GimkitError(f"{described} does not describe a decomposition; choose another name")
    if stamp != digest(text, found):
        raise GimkitError(f"{file} and {described.name} do not belong together, or were changed; delete them to start "
                          "anew")
    return about, found
