"""nnsight's remote backend with smaller requests, and with every failure as one plain line."""

import ast
import pickletools
from unittest import mock

import zstandard
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.intervention.serialization import CustomCloudPickler, _load_function

from gimkit.errors import GimkitError
from gimkit.remote.messages import explained

_whole_function = CustomCloudPickler._dynamic_function_reduce
PATIENT = 2**22  # bytes up to which the best compression takes well under a second


class Unfinished(Exception):
    """A result is not there yet; `gimkit.remote.jobs` asks again."""


class Server(RemoteBackend):
    """A trace or session that runs on a server and comes back."""

    def __call__(self, tracer=None):
        try:
            return self.run(tracer)
        except (Unfinished, GimkitError):
            raise
        except Exception as error:
            raise GimkitError(explained(error, self.host, self.model_key)) from error

    def run(self, tracer):
        """Send the trace and wait for what it saves."""
        return super().__call__(tracer)

    def _serialize(self, tracer) -> bytes:
        """A quarter smaller than nnsight's: no docstrings, no memo entries that nothing uses, a patient compressor."""
        with mock.patch.object(CustomCloudPickler, "_dynamic_function_reduce", _terse_function):
            blob = super()._serialize(tracer)
        if not self.compress:
            return blob
        pickled = zstandard.ZstdDecompressor().decompress(blob)
        if len(pickled) > PATIENT:
            return blob
        return zstandard.ZstdCompressor(level=19).compress(pickletools.optimize(pickled))


def without_docstring(source: str) -> str:
    """A function's source with its docstring blank, every other line where it was.

    >>> without_docstring("def f(x):\\n    'Twice.'\\n    return 2 * x")
    'def f(x):\\n    0\\n    return 2 * x'
    """
    node = ast.parse(source).body[0]
    if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None:
        return source
    body = node.body
    lines, first, last = source.splitlines(keepends=True), body[0].lineno - 1, body[0].end_lineno
    return "".join([*lines[:first], " " * body[0].col_offset + "0\n", "\n" * (last - first - 1), *lines[last:]])


def _terse_function(self, function):
    """How nnsight sends a function, less its docstring."""
    load, (source, *rest), *more = _whole_function(self, function)
    return load, (without_docstring(source) if load is _load_function else source, *rest), *more


def server_of(model, remote, kind=Server) -> Server:
    """The server for a model: the configured one (True), or the one at an address.

    Raises GimkitError for a model that no server can know, and where the hub cannot be asked for its name.
    """
    if not hasattr(model, "to_model_key"):
        raise GimkitError(f"{type(model).__name__} has no name that a server could know it by; load the model with "
                          "gimkit.load(name, remote=True)")
    name = getattr(model, "repo_id", None)
    try:
        key = model.to_model_key()
    except Exception as error:
        raise GimkitError(f"the hub has no answer for {name!r}: servers host models by their hub id, so bundled models "
                          "and folders run there only by remote='local'; else check the name and the network"
                          ) from error
    return kind(key, host=remote if isinstance(remote, str) else None, env=model._remoteable_get_env())
