"""Which code computes: the same digest for the same code, wherever it lies."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trainables.provenance import (
    SOURCE_PACKAGES,
    OtherCodeError,
    current_provenance,
    require_same_source,
)

ROOT = Path(__file__).parents[1]


def _digest_in(root: Path) -> str:
    script = "from trainables.provenance import source_digest; print(source_digest())"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_digest_is_of_the_code_and_not_of_its_place(tmp_path: Path) -> None:
    for package in SOURCE_PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    assert _digest_in(tmp_path) == _digest_in(ROOT)
    module = tmp_path / "seld/losses.py"
    module.write_text(module.read_text() + "\nTEMPERATURE = 1.0\n")
    assert _digest_in(tmp_path) != _digest_in(ROOT)


def test_other_code_is_refused_and_says_where_it_lies() -> None:
    here = current_provenance()
    elsewhere = replace(here, place="another-host:/home/ubuntu/seld")
    require_same_source(elsewhere)
    with pytest.raises(OtherCodeError, match="than the driver's another-host"):
        require_same_source(replace(elsewhere, source="0" * 16))
    require_same_source(replace(here, source="edited since the run began"))
