"""What a stage's outcome depends on, as a key: settings, data, the stages it builds on, code.

Code is told from the source's syntax trees: an edit of a comment, a docstring or the layout makes
no stage another one, an edit of any module of ours that its computation imports does.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trainables.provenance import SOURCE_PACKAGES

#: Modules that carry bytes and words from one place to another: no outcome depends on them.
CARRIERS = (
    "seld.errors",
    "seld.records",
    "seld.storage",
    "trainables.stage_keys",
    "trainables.stages",
    "trainables.work_clock",
)


@dataclass(frozen=True, kw_only=True)
class StageKey:
    """Name and digest of one stage.

    ``alike`` is a digest of the settings without their seed: stages alike take about as long.
    """

    name: str
    digest: str
    alike: str = field(default="", compare=False)

    @property
    def path(self) -> str:
        """Its folder in the store, relative to the root."""
        return f"{self.name}/{self.digest}"


def stage_key(
    name: str,
    settings: Mapping[str, Any],
    *,
    data_fingerprint: str,
    inputs: tuple[StageKey, ...] = (),
    code_of: str,
) -> StageKey:
    """Key of a stage.

    Args:
        name: ``pretrain``, ``finetune`` or ``evaluate``.
        settings: everything the outcome depends on, seed included (plain nested values).
        data_fingerprint: digest of the shards it reads.
        inputs: stages whose results it reads.
        code_of: module whose code, with all of ours that it imports, makes the outcome.
    """
    content = {
        "settings": settings,
        "data": data_fingerprint,
        "inputs": [key.digest for key in inputs],
        "code": code_fingerprint(code_of),
    }
    alike = {name: value for name, value in settings.items() if name != "seed"}
    return StageKey(name=name, digest=_digest(content), alike=_digest(alike))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


@cache
def code_fingerprint(*modules: str, with_imports: bool = True) -> str:
    """Digest of modules and of ours that they import, ignoring comments, docs and layout."""
    found: dict[str, _Code] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in found and name not in CARRIERS:
            found[name] = _code_of(name)
            pending += found[name].imports if with_imports else ()
    return _digest({name: code.digest for name, code in found.items()})[:16]


@dataclass(frozen=True)
class _Code:
    """A module of ours: digest of its code, and our modules it imports, inside functions too."""

    digest: str
    imports: tuple[str, ...]


@cache
def _code_of(module: str) -> _Code:
    source = _source_file(module)
    assert source is not None, f"{module} has no source file"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imports: list[str] = []
    for node in ast.walk(tree):
        _drop_docstring(node)
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    code = ast.dump(tree, annotate_fields=False)
    return _Code(
        digest=hashlib.sha256(code.encode()).hexdigest(),
        imports=tuple(name for name in imports if _source_file(name)),
    )


@cache
def _source_file(module: str) -> Path | None:
    """Of a module of ours, found without importing it or its parents; None for what is not one."""
    package, *rest = module.split(".")
    if package not in SOURCE_PACKAGES:
        return None
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*rest)
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return
    first = node.body[0] if node.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        node.body = node.body[1:]
