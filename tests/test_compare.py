"""The comparison of methods on a bundled model: a row each, and random edges lose."""

import pytest

import gimkit
from gimkit.compare import TASKS, compare


def test_random_edges_lose():
    table = compare("mini-llama", ["ioi"], ["gim", "random"], n=8).set_index("method")
    assert table.cpr["gim"] > 0.8 > 0.5 > table.cpr["random"]
    assert table.cmd["gim"] < 0.3 < table.cmd["random"]
    assert (table.cpr_low <= table.cpr).all() and (table.cpr <= table.cpr_high).all()


def test_unknown_task():
    with pytest.raises(gimkit.GimkitError, match="unknown task 'iio'; use ioi, greater_than"):
        compare("mini-llama", ["iio"])
    assert all(hasattr(gimkit.tasks, task) for task in TASKS)
