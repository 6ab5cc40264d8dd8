"""The same independent jobs as `armworld.jobs`, over a Ray cluster: jobs of a lost node run again elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from armworld.jobs import WORKER_ENVIRONMENT, WorkersLost
from armworld.types import require

Job = TypeVar("Job")
Result = TypeVar("Result")

LOSSES_PER_JOB = 5  # a job whose worker is lost more often than this ends the run


def run_ray_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, address: str
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as jobs finish on the cluster, in any order.

    Args:
        function: Importable on every node; writes whole results or none, to a folder that all nodes share.
        jobs: Its arguments.
        workers: Jobs that run at the same time, one CPU each.
        address: Of the cluster; `local` starts one on this machine.

    Raises:
        ValueError: `workers` is below 1, or no cluster answers at `address`.
        ImportError: Ray is not installed.
        WorkersLost: One job's workers were lost again and again.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    ray = require("ray", "ray")
    if not ray.is_initialized():
        _start(ray, workers, address)
    lost = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.LocalRayletDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
    )
    # Ray's own retries are off: a lost job goes back into our queue, where it is counted
    remote = ray.remote(num_cpus=1, max_retries=0)(function_of_job)
    losses = dict.fromkeys(range(len(jobs)), 0)
    queue, running = list(range(len(jobs))), {}
    try:
        while queue or running:
            while queue and len(running) < workers:
                index = queue.pop(0)
                running[remote.remote(function, jobs[index])] = index
            done, _ = ray.wait(list(running), num_returns=1)
            index = running.pop(done[0])
            try:
                yield jobs[index], ray.get(done[0])
            except lost as error:
                losses[index] += 1
                if losses[index] > LOSSES_PER_JOB:
                    raise WorkersLost(f"the worker of {jobs[index]} was lost {losses[index]} times") from error
                queue.append(index)
            except ray.exceptions.RayTaskError as error:
                # the job's own exception: its message is one line, Ray's is a traceback
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
    finally:
        for reference in running:
            ray.cancel(reference)


def _start(ray: Any, workers: int, address: str) -> None:
    """Connect to the cluster at `address`, or start one on this machine whose workers import what this process does."""
    variables = dict(WORKER_ENVIRONMENT)
    if address == "local":
        variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        settings: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
    else:
        settings = {}
    try:
        ray.init(address=address, runtime_env={"env_vars": variables}, log_to_driver=False, **settings)
    except ConnectionError as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"no Ray cluster at {address!r} ({reason}); start one (`ray start --head`) or give local"
        ) from error


def function_of_job(function: Callable[[Job], Result], job: Job) -> Result:
    """What a node runs."""
    return function(job)
