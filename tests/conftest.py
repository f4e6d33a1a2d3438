"""What several rooms' tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Tests run beside each other's processes; several threads each only get in their own way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers are nice (15) to everything else on a machine: beside another busy process a run of
# a minute takes a quarter of an hour, and a test its limit.
os.environ.setdefault("RAY_worker_niceness", "0")

SHARED_DATA = Path(
    os.environ.get("SELD_SHARED_DATA", Path(__file__).parents[1].parent / "shared/data")
)

EXIT_STATUS = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings and annotations that live outside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data: {SHARED_DATA} is missing (set SELD_SHARED_DATA to use another)")
    return SHARED_DATA


class RayBesideTheRest(LoadScopeScheduling):
    """Of several processes one runs the tests that start Ray, the others all else.

    Two clusters at once would wait for each other's processes, and ``ray down`` ends every one
    on a machine.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith("tests/integration/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayBesideTheRest:
    """Called with ``-n``, as ``make test`` does."""
    return RayBesideTheRest(config, log)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave at once, with the session's exit code.

    After a dozen Ray clusters in one process, threads of C++ libraries may still run when Python
    takes down what they use: once in many runs that crashed the process after its last test.
    """
    status = config.stash.get(EXIT_STATUS, None)
    if status is not None:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how the session ended."""
    session.config.stash[EXIT_STATUS] = int(exitstatus)
