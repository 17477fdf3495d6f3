"""Long jobs: send a request, go away, and fetch the result by its id."""

import inspect
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from nnsight.intervention.envoy import Envoy

from gimkit.errors import GimkitError
from gimkit.remote.capabilities import gives_gradients
from gimkit.remote.server import Server
from gimkit.remote.trace import JOB

SHORTEST, LONGEST = 0.1, 5.0  # seconds between two looks at a request
UNKNOWN = 300.0  # seconds after which a server that does not know a request is taken to have lost it


class Job:
    """A function of gimkit that runs on a server, while this process does something else.

    >>> Job(lambda: 3, ids=["7c9e"]).ids                         # `submit` makes jobs
    ['7c9e']

    Attributes:
        ids: the server's ids of the requests sent so far.
        status: of the last request, as NDIF names it (QUEUED, RUNNING, ...).
    """

    def __init__(self, run: Callable, ids: Sequence[str] = ()):
        self.ids: list[str] = list(ids)
        self.status: str | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._taken = 0  # requests of the function that have an id
        self._sent = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(run,), daemon=True)
        self._thread.start()

    def _work(self, run: Callable) -> None:
        JOB.set(self)  # of this thread alone
        try:
            self._result = run()
        except BaseException as error:
            self._error = error
        finally:
            self._sent.set()

    def done(self) -> bool:
        """Is the result there? Raises the job's error, a GimkitError, when it failed."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    @property
    def result(self) -> Any:
        """The function's result. Raises GimkitError while the job is not done."""
        if not self.done():
            raise GimkitError(f"the job is not done ({self.status}): call job.done() again; "
                              f"gimkit.submit(..., ids={self.ids}) finds it again later")
        return self._result

    def fetch(self, server: Server, tracer: Any) -> Any:
        """The result of the function's next request, which is sent, or found again by its id."""
        turn, self._taken = self._taken, self._taken + 1
        if turn == len(self.ids):
            server.submit(tracer)
            self.ids.append(server.job_id)
            self.status = server.status.value
        server.job_id, server.status, pause, start = self.ids[turn], None, SHORTEST, time.monotonic()
        self._sent.set()
        while True:
            found = server.poll(tracer)
            self.status = server.status.value if server.status else self.status
            if found is not None:
                return found
            if server.status is None and time.monotonic() - start > UNKNOWN:
                raise GimkitError(f"the server knows nothing of {server.job_id}: it restarted, or results are not kept "
                                  "that long; submit the job again")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST)

    def __repr__(self) -> str:
        return f"Job(ids={self.ids}, {self.status if self._thread.is_alive() else 'done'})"


def submit(function: Callable, model: Envoy, *arguments: Any, remote: bool | str = True, ids: Sequence[str] = (),
           **options: Any) -> Job:
    """Run a function of gimkit on a server without waiting for it.

    >>> inspect.signature(submit).parameters["remote"].default
    True

    With a server:

        job = gimkit.submit(gimkit.score_edges, model, task, method="gim")
        job.ids                                                  # write them down: ['7c9e...']
        job.done()                                               # False; job.status is 'RUNNING'
        job = gimkit.submit(gimkit.score_edges, model, task, method="gim", ids=["7c9e..."])    # later, anywhere
        if job.done(): edges = job.result

    Most functions send one request for each `batch_size` prompts, one after another. With backend="auto" a first short
    request finds out whether the server gives gradients, and this call waits for it.

    Args:
        function: one that takes `remote=`.
        model: the function's first argument.
        arguments: the function's further arguments; the same again when a job is found by its ids.
        remote: True for the configured server, or a server's address.
        ids: of the requests of an earlier job; only requests after them are sent.
        options: the function's keyword arguments.

    Returns:
        The `Job`, its first request sent.

    Raises:
        GimkitError: a function without `remote=`; remote=False or "local"; a request that the server refuses.
    """
    accepted = inspect.signature(function).parameters
    if "remote" not in accepted:
        raise GimkitError(f"{function.__name__} runs no model, so there is nothing to submit")
    if not remote or remote == "local":
        raise GimkitError("a job needs a server: give remote=True or its address")
    if "backend" in accepted and options.get("backend", "auto") == "auto":
        options["backend"] = "reverse" if gives_gradients(model, remote) else "forward"
    job = Job(lambda: function(model, *arguments, remote=remote, **options), ids)
    job._sent.wait()
    if job._error is not None:
        raise job._error
    return job
