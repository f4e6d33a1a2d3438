"""The house keeps its shape: imports go one way, and the core never meets Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What each room may import of ours.
ALLOWED = {
    "seld": {"seld"},
    "trainables": {"seld", "trainables"},
    "search_spaces": {"seld", "trainables", "search_spaces"},
    "ablations": {"seld", "trainables", "search_spaces", "ablations", "analysis"},
    "analysis": {"seld", "analysis"},
}
#: Modules of ``trainables`` that must run where Ray is not installed, with all that they import.
WITHOUT_RAY = (
    "cells", "clips", "directions", "evaluate_job", "finetune", "finetune_job", "jobs", "pretrain",
    "pretrain_job", "probes", "resources", "stages",
)  # fmt: skip


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def _modules() -> list[Path]:
    return sorted(path for room in ALLOWED for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    imported = _imports(path)
    assert imported & ALLOWED.keys() <= ALLOWED[room]
    if room in ("seld", "analysis"):
        assert "ray" not in imported


def test_loops_and_jobs_need_no_ray() -> None:
    modules = ", ".join(f"trainables.{name}" for name in WITHOUT_RAY)
    without = f"import sys; sys.modules['ray'] = None; import {modules}, search_spaces.studies"
    done = subprocess.run(
        [sys.executable, "-c", without], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_room_for_odds_and_ends() -> None:
    stems = {path.stem for path in _modules()}
    assert not stems & {"utils", "common", "helpers", "base", "misc"}
