"""Long jobs: send a request, go away, and fetch the result by its id."""

import inspect
import threading
import time
from collections.abc import Callable, Sequence

from gimkit.errors import GimkitError
from gimkit.remote.capabilities import gives_gradients
from gimkit.remote.server import Server
from gimkit.remote.trace import JOB

SHORTEST, LONGEST = 0.1, 5.0  # seconds between two looks at a request
UNKNOWN = 300.0  # seconds until a server that has no word of a request never will


class Job:
    """A function of gimkit that runs on a server, while this process does something else.

    Attributes:
        ids: the server's ids of the requests that were sent so far.
        status: of the last request, in NDIF's words (QUEUED, RUNNING, ...).
    """

    def __init__(self, run: Callable, ids: Sequence[str] = ()):
        self.ids, self.status = list(ids), None
        self._result, self._error = None, None
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
        """Whether the result is there. Raises GimkitError when the job failed."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    @property
    def result(self):
        """What the function returns. Raises GimkitError while the job is not done."""
        if not self.done():
            raise GimkitError(f"the job is not done ({self.status}): call job.done() again; "
                              f"gimkit.submit(..., ids={self.ids}) finds it again later")
        return self._result

    def fetch(self, server: Server, tracer):
        """The result of the function's next request: sent, or found again by its id."""
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


def submit(function: Callable, model, *arguments, remote: bool | str = True, ids: Sequence[str] = (),
           **options) -> Job:
    """Run a function of gimkit on a server without waiting for it.

    >>> inspect.signature(submit).parameters["remote"].default
    True

        job = gimkit.submit(gimkit.score_edges, model, task, method="gim")
        job.ids                                                  # write them down: ['7c9e...']
        job.done()                                               # False; job.status is 'RUNNING'
        job = gimkit.submit(gimkit.score_edges, model, task, method="gim", ids=["7c9e..."])    # later, anywhere
        if job.done(): edges = job.result

    Most functions send one request for each `batch_size` prompts, one after another. With backend="auto" the server is
    first asked, and waited for, whether it gives gradients.

    Args:
        function: one that takes `remote=`.
        model: as the function takes it.
        arguments: the function's own; the same again when a job is found by its ids.
        remote: True for the configured server, or a server's address.
        ids: of the requests of an earlier job; only what comes after them is sent.
        options: the function's own.

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
