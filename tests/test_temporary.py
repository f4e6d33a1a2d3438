"""Temporary folders: gone with the block, and with the process where it is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from seld.temporary import temporary_folder

HOLDER = """
import sys
from seld.temporary import temporary_folder
with temporary_folder() as folder:
    (folder / "half.written").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this process and of those it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


@contextmanager
def holder() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a temporary folder of its own, and that folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def test_a_folder_is_empty_and_gone_after_the_block_and_after_an_error(
    temporary_disk: Path,
) -> None:
    with temporary_folder() as one, temporary_folder() as other:
        assert one != other
        assert list(one.iterdir()) == []
        (one / "file").write_text("x")
        assert one.is_relative_to(temporary_disk)
    with pytest.raises(ValueError, match="planned"), temporary_folder():
        raise ValueError("planned")
    assert [path for path in temporary_disk.rglob("*") if path.parent != temporary_disk] == []


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays() -> None:
    with holder() as (living, kept), holder() as (killed, left):
        killed.kill()
        killed.wait()
        assert (left / "half.written").exists()
        with temporary_folder():
            assert not left.exists()
            assert (kept / "half.written").exists()
        living.communicate("")
        assert living.returncode == 0
        assert not kept.exists()
    assert list(kept.parent.iterdir()) == []
