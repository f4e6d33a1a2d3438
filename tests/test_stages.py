"""The stage store: computed once, seen whole, taken over from the dead."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from seld.errors import InputError
from trainables import stages
from trainables.stages import StageKey, StageStore, code_fingerprint, stage_key

KEY = StageKey(name="pretrain", digest="a" * 20)


def _write_result(folder: Path) -> Mapping[str, Any]:
    (folder / "nested").mkdir()
    (folder / "nested/weights.bin").write_bytes(bytes(range(256)) * 100)
    return {"loss": 0.25}


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "stages")


def test_a_stage_is_computed_once_and_then_served(store: StageStore) -> None:
    first = store.obtain(KEY, _write_result)
    second = store.obtain(KEY, lambda folder: pytest.fail("computed again"))
    assert first.computed
    assert not second.computed
    assert second.summary == {"loss": 0.25}
    assert (second.folder / "nested/weights.bin").read_bytes() == bytes(range(256)) * 100


def test_keys_depend_on_everything_the_outcome_depends_on() -> None:
    def key(
        settings: dict[str, Any] | None = None, data: str = "d", inputs: tuple[StageKey, ...] = ()
    ) -> str:
        return stage_key(
            "pretrain",
            settings or {"steps": 3, "nested": {"a": 1.0}},
            data_fingerprint=data,
            inputs=inputs,
            code_of=("seld.settings",),
        ).digest

    assert key() == key({"nested": {"a": 1.0}, "steps": 3})
    assert len({key(), key({"steps": 4}), key(data="e"), key(inputs=(KEY,))}) == 4


def test_code_fingerprint_follows_meaning_and_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "pretend"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "loop.py").write_text("from pretend.loss import loss\nstep = loss(1)\n")
    (package / "loss.py").write_text("def loss(value):\n    return value + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stages, "OUR_PACKAGES", ("pretend",))

    def fingerprint() -> str:
        code_fingerprint.cache_clear()
        return code_fingerprint("pretend.loop")

    original = fingerprint()
    (package / "loss.py").write_text(
        '"""Docs."""\n\n\ndef loss(value):\n    """More."""\n    # why\n    return (value + 1)\n'
    )
    assert fingerprint() == original
    (package / "loss.py").write_text("def loss(value):\n    return value + 2\n")
    assert fingerprint() != original
    code_fingerprint.cache_clear()


def test_a_failing_computation_leaves_nothing_and_frees_the_lease(store: StageStore) -> None:
    def fail(folder: Path) -> Mapping[str, Any]:
        (folder / "half").write_text("half")
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        store.obtain(KEY, fail)
    assert store.find(KEY) is None
    assert store.obtain(KEY, _write_result).computed


def test_a_damaged_result_is_named(store: StageStore) -> None:
    result = store.obtain(KEY, _write_result)
    (result.folder / "nested/weights.bin").write_bytes(b"short")
    with pytest.raises(InputError, match=r"5 bytes.*expected 25600 bytes"):
        store.find(KEY)


def _obtain_counting(root: Path, tally: Path, start: Any) -> None:
    start.wait()

    def compute(folder: Path) -> Mapping[str, Any]:
        with tally.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return _write_result(folder)

    StageStore(root).obtain(KEY, compute)


def test_of_many_processes_one_computes_and_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    tally = tmp_path / "tally"
    workers = [
        context.Process(target=_obtain_counting, args=(tmp_path / "stages", tally, start))
        for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert len(tally.read_text().splitlines()) == 1


def _compute_until_killed(root: Path, marker: Path, point: str) -> None:
    store = StageStore(root)

    def compute(folder: Path) -> Mapping[str, Any]:
        if point == "computing":
            _announce_and_hang(marker)
        return _write_result(folder)

    if point == "uploading":
        put_file = store._files.put_file

        def put_then_hang(source: str, target: str) -> None:
            put_file(source, target)
            _announce_and_hang(marker)

        store._files.put_file = put_then_hang
    if point == "committing":

        def hang_before_move(source: str, target: str) -> None:
            if "committed" in str(target):
                _announce_and_hang(marker)
            os.rename(source, target)

        stages.os.replace = hang_before_move  # type: ignore[assignment]
    store.obtain(KEY, compute)


def _announce_and_hang(marker: Path) -> None:
    marker.touch()
    signal.pause()


@pytest.mark.parametrize("point", ["computing", "uploading", "committing"])
def test_a_killed_computation_is_taken_over_and_never_seen_half(tmp_path: Path, point: str) -> None:
    context = multiprocessing.get_context("fork")
    marker = tmp_path / "reached"
    victim = context.Process(
        target=_compute_until_killed, args=(tmp_path / "stages", marker, point)
    )
    victim.start()
    while not marker.exists():
        assert victim.is_alive()
        time.sleep(0.01)
    store = StageStore(tmp_path / "stages")
    assert store.find(KEY) is None
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    result = store.obtain(KEY, _write_result)
    assert result.computed
    assert (result.folder / "nested/weights.bin").stat().st_size == 25600


def test_a_lease_elsewhere_expires_with_its_heartbeat(store: StageStore, tmp_path: Path) -> None:
    folder = tmp_path / "stages" / KEY.path
    folder.mkdir(parents=True)
    lease = {"owner": "x", "host": "another-host", "pid": 1, "heartbeat": time.time()}
    (folder / "lease-00000.json").write_text(json.dumps(lease))
    with store._lease(KEY) as held:
        assert not held
    lease["heartbeat"] -= stages.LEASE_EXPIRY_S + 1
    (folder / "lease-00000.json").write_text(json.dumps(lease))
    with store._lease(KEY) as held:
        assert held
