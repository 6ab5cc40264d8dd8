"""Independent, repeatable jobs over processes of this machine: interrupt keeps what is done, lost workers' jobs rerun.

A job is a picklable argument; the function must be importable and must write its result whole or not at all, so
that a job can be repeated at any time.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_handles
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

# One thread per worker: two shared cores ran slower with two. LP_NUM_THREADS is llvmpipe's (software rendering).
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
INTERRUPT_POLL_SECONDS = 0.2
LOST_WORKERS_ALLOWED = 3  # in a row without a finished job between them


class WorkersLost(ChildProcessError):
    """Workers died again and again; what was finished is kept."""


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, drop_running: bool = False
) -> Generator[tuple[Job, Result], None, None]:
    """Yield (job, result) as jobs finish, in any order; `workers` = 1 runs them here, one after the other.

    An exception of a job ends the run, and so do Ctrl-C and SIGTERM (as KeyboardInterrupt): waiting jobs are dropped,
    jobs under way are finished first, or dropped too with `drop_running`. With one worker both act as they always do.

    Raises:
        ValueError: `workers` is below 1.
        WorkersLost: Workers died several times without finishing a job.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if workers == 1:
        for job in jobs:
            yield job, function(job)
        return
    waiting, losses = dict(enumerate(jobs)), 0
    while waiting:
        try:
            for index, result in _run_pool(function, waiting.copy(), workers, drop_running):
                losses = 0
                yield waiting.pop(index), result
        except BrokenProcessPool as error:
            losses += 1
            if losses > LOST_WORKERS_ALLOWED:
                raise WorkersLost(
                    f"worker processes died {losses} times in a row with {len(waiting)} jobs left; "
                    "is memory short? Run again with fewer workers: finished work is kept"
                ) from error


def _run_pool(
    function: Callable[[Job], Result], jobs: dict[int, Job], workers: int, drop_running: bool
) -> Iterator[tuple[int, Result]]:
    before = set(multiprocessing.active_children())
    # An interrupt raised inside `wait` or `submit` could leave a future locked for ever, so it only sets a flag.
    with _worker_environment(), interruption_flag() as interrupted:
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)), multiprocessing.get_context("spawn"), initializer=_start_worker
        )
        drop = False
        try:
            queue = iter(jobs.items())
            running: dict[Future[Result], int] = {}
            # few jobs ahead: an interrupt then waits for little
            for index, job in itertools.islice(queue, 2 * workers):
                running[pool.submit(function, job)] = index
            while running:
                done, _ = wait(running, timeout=INTERRUPT_POLL_SECONDS, return_when=FIRST_COMPLETED)
                if interrupted.is_set():
                    raise KeyboardInterrupt
                for future in done:
                    index = running.pop(future)
                    result = future.result()
                    for following, job in itertools.islice(queue, 1):
                        running[pool.submit(function, job)] = following
                    yield index, result
            if interrupted.is_set():  # while the last results were taken
                raise KeyboardInterrupt
        except BaseException as error:
            drop = drop_running
            if isinstance(error, BrokenProcessPool) and interrupted.is_set():  # what stopped us stopped the workers
                raise KeyboardInterrupt from error
            raise
        finally:
            if drop:
                for process in set(multiprocessing.active_children()) - before:
                    process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def interruption_flag() -> Iterator[threading.Event]:
    """Within, the first Ctrl-C or SIGTERM sets the flag; a second one interrupts at once, as usual.

    Off the main thread, where Python handles no signals, the flag is never set.
    """
    flag = threading.Event()
    previous = {}

    def handle(number: int, frame: object) -> None:
        flag.set()
        signal.signal(number, previous[signal.Signals(number)])

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in previous:
            signal.signal(number, handle)
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """Spawned processes inherit these variables; this process gets its own back afterwards."""
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent does: a killed parent must not leave workers behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for_handles([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_with_progress(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, name: str, total: int, ray: str | None = None
) -> None:
    """Run all jobs on processes of this machine, or on Ray where an address is given, under a progress bar.

    Args:
        function, jobs, workers: As in `run_jobs`.
        name: What the bar says.
        total: Jobs in all, those done in earlier runs included.
        ray: As in `ray_jobs.run_ray_jobs`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if ray is None:
        results = run_jobs(function, jobs, workers)
    else:
        from armworld.datasets.ray_jobs import run_ray_jobs

        results = run_ray_jobs(function, jobs, workers, ray)
    with Progress(TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task(name, total=total, completed=total - len(jobs))
        for _ in results:
            progress.advance(bar)
