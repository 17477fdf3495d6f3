"""The table that proves a server, and jobs that are fetched by their ids."""

import time

import pytest
from nnsight import CONFIG

import gimkit

pytestmark = pytest.mark.xdist_group("ndif")


def wait(job):
    deadline = time.time() + 60
    while not job.done():
        assert time.time() < deadline, job
        time.sleep(0.05)
    return job


def test_the_table_of_a_server(server, llama, capsys):
    gimkit.check(llama.there, remote=server)
    printed = capsys.readouterr().out
    rows = {line[:14].split()[0]: line.split() for line in printed.splitlines()[1:]}
    assert rows["model"][1:] == ["tests/mini-llama", "yes", "RUNNING"] and rows["backend"][1] == "reverse"
    assert rows["key"][1] == "set" and "trusted" not in printed.replace("not needed", "")
    assert rows["nnsight"][1] == rows["nnsight"][3] == "0.8.1"
    assert "NO" not in printed.split() and "differs" not in printed.split()


def test_the_table_of_no_server_names_the_trouble_and_raises_nothing(llama, monkeypatch, capsys):
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    gimkit.check(llama.there, remote="http://127.0.0.1:1")
    printed = capsys.readouterr().out
    assert "not set" in printed and "the server is down or the address is wrong" in printed


def test_a_job_of_several_requests_is_found_again_by_its_ids(server, llama):
    task = gimkit.tasks.ioi(llama.here, n=2)
    call = (gimkit.score_nodes, llama.there, task, "exact")
    job = gimkit.submit(*call, batch_size=1, remote=server)
    assert len(job.ids) == 1
    with pytest.raises(gimkit.GimkitError, match="the job is not done .*ids="):
        job.result  # noqa: B018
    scores = wait(job).result.per_example
    assert len(job.ids) == 2 and job.status == "COMPLETED"
    assert (scores - gimkit.score_nodes(llama.here, task, "exact").per_example).abs().max() < 1e-5
    again = gimkit.submit(*call, batch_size=1, remote=server, ids=job.ids)
    assert (wait(again).result.per_example == scores).all() and again.ids == job.ids


def test_a_job_that_fails_says_why(server, llama, monkeypatch):
    job = gimkit.submit(gimkit.attribute, llama.there, "Mary", 7, remote=server)
    assert wait(job).result.scores.isfinite().all()
    monkeypatch.setattr(CONFIG.API, "APIKEY", "who")
    with pytest.raises(gimkit.GimkitError, match="does not know this API key"):
        gimkit.submit(gimkit.attribute, llama.there, "Mary", 7, backend="reverse", remote=server)


def test_what_cannot_be_submitted(llama):
    with pytest.raises(gimkit.GimkitError, match="runs no model"):
        gimkit.submit(gimkit.receipt, llama.there)
    with pytest.raises(gimkit.GimkitError, match="needs a server"):
        gimkit.submit(gimkit.attribute, llama.there, "Mary", remote=False)
