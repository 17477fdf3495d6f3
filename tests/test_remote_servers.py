"""Servers that attack, hang, drip, cut off, redirect or talk nonsense: nothing runs, and one line comes in time."""

import io
import json
import pickle
import re
import time
import traceback
from pathlib import Path

import pytest
import torch
import zstandard
from loopback import RECEIVED, answer, cut_off, loopback, redirect, send_frame
from nnsight import CONFIG
from nnsight.modeling import huggingface
from nnsight.schema.response import ResponseModel, Status

import gimkit
from gimkit.remote import jobs, transport

BODY = "<html>BODY OF THE ANSWER</html>"


@pytest.fixture(scope="module")
def model():
    """A bundled model without weights, which the servers know as someone/model."""
    model = gimkit.load("mini-llama", remote=True)
    huggingface._ID_CACHE[model.repo_id] = "someone/model"
    return model


@pytest.fixture(autouse=True)
def key(monkeypatch):
    """A key, and no statuses printed."""
    monkeypatch.setattr(CONFIG.API, "APIKEY", "the-key")
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)


@pytest.fixture
def limits(monkeypatch):
    """limits(slow): a server that is slow on purpose is given up within a second or two, others have half a minute."""
    def set_limits(slow: bool):
        for name, value in {"PATIENCE": 0.3, "QUIET": 1.0, "LONGEST": 2.0, "TICK": 0.01}.items() if slow else ():
            monkeypatch.setattr(transport, name, value)
    return set_limits


def attribute(model, server):
    return gimkit.attribute(model, torch.tensor([1, 5, 9]), 7, baseline=0, backend="reverse", remote=server.address)


def plain_trace(model, server):
    with model.trace(torch.tensor([[1, 5, 9]]), **gimkit.remote.where(model, server.address)):
        found = model.output.logits.sum().save()
    return found


def own_trace(model, server):
    """A trace as a user writes it."""
    with model.trace(torch.tensor([[1, 5, 9]]), remote=server.address):
        found = model.output.logits.sum().save()
    return found


def edited_trace(model, server):
    return own_trace(gimkit.apply(model), server)


def session(model, server):
    with model.session(remote=server.address):
        with model.trace(torch.tensor([[1, 5, 9]])):
            found = model.output.logits.sum().save()
    return found


def submitted(model, server):
    return gimkit.submit(gimkit.attribute, model, torch.tensor([1, 5, 9]), 7, baseline=0, backend="reverse",
                         remote=server.address)


class Mark:
    """An object that makes a file when it is unpickled, as an attacker's would do anything."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def saved(value, **options) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def packed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def completed(data) -> str:
    return json.dumps({"id": "7", "status": "COMPLETED", "data": data})


def frame(data) -> bytes:
    return ResponseModel(id="7", status=Status.COMPLETED, data=data).pickle()


@pytest.mark.filterwarnings("ignore:'torch.load' received")
@pytest.mark.parametrize("send", [attribute, plain_trace, own_trace, edited_trace, session])
@pytest.mark.parametrize("attack", ["frame", "bare pickle", "inline result", "fetched result", "torchscript"])
def test_no_server_runs_code_here(model, tmp_path, send, attack):
    mark = tmp_path / "it ran"
    result = saved({"found": Mark(mark)})
    frames = {"frame": frame(Mark(mark)), "bare pickle": pickle.dumps({"data": Mark(mark)}),
              "inline result": frame(packed(result)), "torchscript": frame(packed(scripted()))}
    with loopback() as server:
        server.pages["/result/7"] = lambda connection: answer(connection, packed(result))
        server.frames = [frames.get(attack, completed(f"{server.address}/result/7"))]
        with pytest.raises(gimkit.GimkitError, match="is refused|not what an NDIF|did not arrive completely") as caught:
            send(model, server)
    assert not mark.exists() and "\n" not in str(caught.value)


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), file)
    return file.getvalue()


def test_no_server_runs_code_here_through_a_job(model, tmp_path):
    mark = tmp_path / "it ran"
    with loopback() as server:
        server.pages["/result/7"] = lambda connection: answer(connection, packed(saved({"found": Mark(mark)})))
        server.pages["/response/7"] = lambda connection: answer(connection, completed(f"{server.address}/result/7"))
        waiting = submitted(model, server)
        with pytest.raises(gimkit.GimkitError, match="the server's result is refused .*could run code here"):
            wait(waiting)
    assert not mark.exists()


def test_the_attack_would_work_on_plain_pickle(tmp_path):
    """The control: what nnsight itself reads these frames with."""
    mark = tmp_path / "it ran"
    assert frame(Mark(mark)) and not mark.exists()
    with pytest.raises(Exception):  # noqa: B017  (a path is no result)
        ResponseModel.unpickle(frame(Mark(mark))).data.nothing  # noqa: B018
    assert mark.exists()


def test_plain_values_arrive(model):
    values = {"found": [torch.arange(3.0), (1, 2.5, "text", None, True), {"a": torch.zeros(2, dtype=torch.bfloat16)}]}
    with loopback(frames=[frame(packed(saved(values)))]) as server:
        found = own_trace(model, server)
    assert str(found) == str(values["found"])


HTTP = {"hangs": lambda s: s.hang, "drips a header": lambda s: s.drip_header, "drips a body": lambda s: s.drip_body,
        "is cut off": lambda s: cut_off, "redirects": lambda s: redirect("http://user:pass@elsewhere:1/x"),
        "is a web page": lambda s: lambda c: answer(c, BODY), "fails": lambda s: lambda c: answer(c, BODY, 500),
        "is empty": lambda s: lambda c: answer(c, ""), "is a list": lambda s: lambda c: answer(c, [1]),
        "is deep": lambda s: lambda c: answer(c, "[" * 100_000), "is not there": lambda s: lambda c: answer(c, "", 404),
        "is no HTTP": lambda s: lambda c: c.sendall(b"\0" * 100 + BODY.encode())}
SLOW = ("hangs", "drips a header", "drips a body")
SAID = ("did not answer in time", "redirects to http://elsewhere", "not what an NDIF server sends", "the job failed on",
        "is no NDIF server", "no answer from", "the result did not arrive", "did not arrive completely")


def one_line_of(call, *arguments) -> str:
    """The message of a GimkitError, whose traceback shows nothing that the server wrote."""
    with pytest.raises(gimkit.GimkitError) as caught:
        call(*arguments)
    printed = "".join(traceback.format_exception(caught.value))
    assert "BODY" not in printed and "pass@" not in printed and "the-key" not in printed
    assert "During handling" not in printed and "direct cause" not in printed
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("how", HTTP)
@pytest.mark.parametrize("path", ["/subscribe", "/request", "/result/7"])
def test_a_bad_answer_is_one_line_in_time(model, limits, path, how):
    limits(how in SLOW)
    with loopback() as server:
        server.frames = [completed(f"{server.address}/result/7")]
        server.pages[path] = HTTP[how](server)
        told = one_line_of(attribute, model, server)
        assert any(words in told for words in SAID), told
        if path != "/result/7" and how in SLOW[:2]:
            assert "did not answer in time" in told
        if how == "redirects" and path != "/result/7":
            assert told.endswith("redirects to http://elsewhere:1/x; give the address of the server itself")


FRAMES = {"silence": ([lambda s: s.hang], "did not answer in time"),
          "pongs alone": ([lambda s: s.pong_only], "did not answer in time"),
          "a frame that drips": ([lambda s: lambda c: (c.sendall(b"\x82\x7f" + bytes(5) + b"\1\0\0"), s.drip(c))],
                                 "did not answer in time"),
          "endless messages": ([lambda s: lambda c: talk(s, c)], "did not answer in time"),
          "no JSON": (["no JSON"], "not what an NDIF server sends"),
          "an unknown status": ([json.dumps(RECEIVED | {"status": "DONE"})], "not what an NDIF server sends"),
          "an error": ([json.dumps(RECEIVED | {"status": "ERROR", "description": "one\n\x1b[31mtwo"})],
                       "the job failed on http.*: two$"),
          "no result": ([completed(None)], "not what an NDIF server sends"),
          "a number": ([completed(7)], "not what an NDIF server sends"),
          "a file": ([completed("file:///etc/passwd")], "not what an NDIF server sends"),
          "garbage": ([b"garbage"], "not what an NDIF server sends"),
          "a torn result": ([frame(packed(saved({"found": torch.zeros(9)}))[:-9])], "did not arrive completely"),
          "a list": ([frame(packed(saved([1])))], "not what an NDIF server sends"),
          "nothing of it": ([frame(packed(saved({})))], "not what an NDIF server sends"),
          "another name": ([frame(packed(saved({"gimkit": 1})))], "not what an NDIF server sends"),
          "the end": ([lambda s: lambda c: send_frame(c, b"\3\350", 8)], "did not arrive .the connection closed")}


def talk(server, connection):
    while not server.stopped.wait(0.01):
        send_frame(connection, json.dumps(RECEIVED | {"status": "LOG", "description": "more"}))


@pytest.mark.parametrize("what", FRAMES)
def test_a_bad_message_is_one_line_in_time(model, limits, what):
    frames, words = FRAMES[what]
    limits(words == "did not answer in time")
    with loopback() as server:
        server.frames = [one(server) if callable(one) else one for one in frames]
        told = one_line_of(attribute, model, server)
    assert re.search(words, told), told


def wait(job):
    for _ in range(3000):
        if job.done():
            return
        time.sleep(0.01)


@pytest.mark.parametrize("how, words", [
    ("hangs", "did not answer in time"), ("is cut off", "the result did not arrive"), ("fails", "the job failed on"),
    ("is not there", "the server knows nothing of 7")])
def test_a_job_that_is_asked_for_in_vain(model, limits, monkeypatch, how, words):
    monkeypatch.setattr(jobs, "UNKNOWN", 0.3)
    with loopback() as server:
        server.pages["/response/7"] = HTTP[how](server)
        limits(how in SLOW)
        waiting = submitted(model, server)
        assert words in one_line_of(wait, waiting)


ANSWERS = [[], 7, "text", None, {"deployments": []}, {"deployments": {"a": 7, "b": {"repo_id": [1]}}},
           {"deployments": {"a": {"repo_id": "someone/model", "application_state": {"x": "y\n\x1b[2J"}}}},
           {"packages": 7, "python_version": None}, {"packages": {"torch": [1], "nnsight": None}}]


@pytest.mark.parametrize("how", [*HTTP, *range(len(ANSWERS))])
def test_the_table_raises_nothing(model, limits, capsys, how):
    limits(how in SLOW)
    with loopback() as server:
        for path in ("/status", "/env", "/subscribe"):
            server.pages[path] = HTTP[how](server) if how in HTTP else lambda c: answer(c, ANSWERS[how])
        gimkit.check(model, remote=server.address.replace("//", "//mary:secret@"))
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].split()[:4] == ["3", "tokens", "-", "NO"]
    assert "\x1b" not in printed and "secret" not in printed and "pass@" not in printed and "BODY" not in printed
    assert len(printed.splitlines()) == 10


def test_passwords_are_sent_and_not_printed(model):
    with loopback({"/request": lambda connection: answer(connection, BODY, 500)}) as server:
        server.address = server.address.replace("//", "//mary:pa%20ss@")
        told = one_line_of(attribute, model, server)
        sent = [headers["authorization"] for _, headers in server.asked]
    assert sent == ["Basic bWFyeTpwYSBzcw=="] * 2 and "mary" not in told
    for address in ("mary:s3cr3t@host", "ftp://mary:s3cr3t@host", "http://mary:s3/s3cr3t@host", "http://mary:s3cr3t@"):
        with pytest.raises(gimkit.GimkitError) as caught:
            gimkit.attribute(model, "Mary", remote=address)
        printed = "".join(traceback.format_exception(caught.value))
        assert "s3" not in printed, printed


def test_the_key_follows_no_redirection(model):
    with loopback() as other:
        for path in ("/subscribe", "/request"):
            with loopback({path: redirect(f"{other.address}{path}")}) as server:
                one_line_of(attribute, model, server)
        assert not other.asked
