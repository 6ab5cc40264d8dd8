"""A device read in a thread of its own: the control loop takes the latest reading and never waits for hardware."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from armworld.real.protocols import DeviceError, DeviceLost

Reading = TypeVar("Reading")


class Poller(Generic[Reading]):
    """Calls `read` about every `period_s`. The first reading is taken before `start` returns.

    `read` raises DeviceError for a reading that failed (the old one stays, and ages) and DeviceLost when the
    device is gone, which ends the thread and is raised again by `latest`. Any other exception counts as lost.
    """

    def __init__(self, name: str, read: Callable[[], Reading], period_s: float) -> None:
        self.name, self.period_s = name, period_s
        self._read = read
        self._lock = threading.Lock()
        self._value: Reading | None = None
        self._lost: DeviceLost | None = None
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._value = self._read()
        self._thread = threading.Thread(target=self._run, name=f"poll {self.name}", daemon=True)
        self._thread.start()

    def latest(self) -> Reading:
        """The newest reading; raises DeviceLost once the device is gone."""
        with self._lock:
            if self._lost is not None:
                raise DeviceLost(str(self._lost)) from self._lost
            if self._value is None:
                raise DeviceLost(f"{self.name} is not connected; call connect() first")
            return self._value

    @property
    def running(self) -> bool:
        return self._thread is not None and self._lost is None and not self._ending.is_set()

    def stop(self, timeout_s: float = 1.5) -> None:
        """End the thread; one that hangs inside a driver is left behind (it is a daemon)."""
        self._ending.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._ending.is_set():
            started = time.monotonic()
            try:
                value = self._read()
            except DeviceLost as error:
                self._fail(error)
                return
            except DeviceError:
                pass  # the old reading stays and grows stale, which the gate sees
            except Exception as error:
                self._fail(DeviceLost(f"{self.name}: {error}"))
                return
            else:
                with self._lock:
                    self._value = value
            self._ending.wait(max(0.001, self.period_s - (time.monotonic() - started)))

    def _fail(self, error: DeviceLost) -> None:
        with self._lock:
            self._lost = error


def call_with_timeout(call: Callable[[], object], timeout_s: float, what: str) -> None:
    """Run a call that may hang inside a driver; raise DeviceError when it does, or what it raised.

    What the call holds is let go once the error is handled: a robot that is still referred to stays connected.
    """
    failure: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise DeviceError(f"{what} did not answer within {timeout_s} s")
    if failure:
        error = failure.pop()  # the list is in a frame of the error's own traceback, which would keep itself alive
        raise DeviceError(f"{what}: {error}") from error
