"""What every test may rely on: a real robot's client may raise this process to real-time priority; no test keeps it."""

import os
from collections.abc import Iterator

import pytest


def back_to_ordinary_priority() -> bool:
    """Leave a real-time scheduling class, which children would inherit and starve the machine with."""
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


def pytest_collection_finish(session: pytest.Session) -> None:
    if back_to_ordinary_priority():
        print("an import raised this process to real-time priority; taken back")


@pytest.fixture(autouse=True)
def ordinary_priority(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if back_to_ordinary_priority():
        print(f"{request.node.nodeid} raised this process to real-time priority; taken back")
