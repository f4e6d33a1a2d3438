"""What several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests run beside each other's processes; several threads each only get in their own way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers are nice (15) to everything else on a machine: beside another busy process a run of
# a minute takes a quarter of an hour, and a test its limit.
os.environ.setdefault("RAY_worker_niceness", "0")

SHARED_DATA = Path(
    os.environ.get("SELD_SHARED_DATA", Path(__file__).parents[1].parent / "shared/data")
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings and annotations that live outside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data: {SHARED_DATA} is missing (set SELD_SHARED_DATA to use another)")
    return SHARED_DATA
