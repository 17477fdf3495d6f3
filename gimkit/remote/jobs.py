"""Long jobs: send a request, go away, and fetch the result by its id."""

import inspect

from gimkit.errors import GimkitError
from gimkit.remote.capabilities import gives_gradients
from gimkit.remote.server import Server, Unfinished, server_of


class Job:
    """A gimkit function whose requests wait at a server, while this process does something else.

    ids: the server's ids of its requests so far. status: the last one's, in NDIF's words (QUEUED, RUNNING, ...).
    """

    def __init__(self, run, host, ids=()):
        self.ids, self.status = list(ids), None
        self._run, self._host, self._results, self._outcome = run, host, [], None

    def done(self) -> bool:
        """Ask the server; True when the result is there. Where a function sends several requests, each goes out when
        the one before is back, so somebody has to ask.

        Raises GimkitError when the job failed.
        """
        if self._outcome is None:
            self._turn = 0
            try:
                self._outcome = (self._run(self),)
            except Unfinished:  # the function starts anew when it is asked again
                return False
        return True

    @property
    def result(self):
        """What the function returns. Raises GimkitError while the job is not done."""
        if self._outcome is None:
            raise GimkitError(f"the job is not done ({self.status}): ask job.done() again; "
                              f"gimkit.submit(..., ids={self.ids}) finds it again later")
        return self._outcome[0]

    def backend(self, model) -> Server:
        """The backend of this job's next trace."""
        slot = server_of(model, self._host, _Slot)
        slot.job = self
        return slot

    def __repr__(self) -> str:
        return f"Job(ids={self.ids}, {'done' if self._outcome else self.status})"


def submit(function, model, *arguments, remote=True, ids=(), **options) -> Job:
    """Run a function of gimkit on a server without waiting for it.

    >>> inspect.signature(submit).parameters["remote"].default
    True

        job = gimkit.submit(gimkit.score_edges, model, task, method="gim")
        job.ids                                                  # write them down: ['7c9e...']
        job.done()                                               # False; job.status is 'RUNNING'
        job = gimkit.submit(gimkit.score_edges, model, task, method="gim", ids=["7c9e..."])    # later, anywhere
        if job.done(): edges = job.result

    function: one that takes `remote=`. model, arguments, options: its own, the same again when a job is picked up by
    its ids. remote: as there, a server. Most functions send one request for each `batch_size` prompts; they go out one
    after another, each when `job.done()` finds the one before finished. The first goes out at once, unless ids are
    given. With backend="auto" the server is first asked, and waited for, whether it gives gradients.
    Raises GimkitError for a function without `remote=` and for remote=False or "local".
    """
    accepted = inspect.signature(function).parameters
    if "remote" not in accepted:
        raise GimkitError(f"{function.__name__} runs no model, so there is nothing to submit")
    if not remote or remote == "local":
        raise GimkitError("a job needs a server: give remote=True or its address")
    if "backend" in accepted and options.get("backend", "auto") == "auto":
        options["backend"] = "reverse" if gives_gradients(model, remote) else "forward"
    job = Job(lambda job: function(model, *arguments, remote=job, **options), remote, ids)
    if not ids:
        job.done()
    return job


class _Slot(Server):
    """One of a job's requests: sent once, then answered by what came back."""

    def run(self, tracer):
        job, turn = self.job, self.job._turn
        job._turn += 1
        if turn == len(job.ids):
            self.submit(tracer)
            job.ids.append(self.job_id)
        elif turn == len(job._results):
            self.job_id = job.ids[turn]
            result = self.poll(tracer)
            if result is not None:
                job._results.append(result)
        job.status = self.status.value if self.status else job.status
        if turn == len(job._results):
            raise Unfinished
        self._push(job._results[turn], tracer)
        return job._results[turn]
