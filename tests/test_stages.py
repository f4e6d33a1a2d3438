"""The stage store: computed once, seen whole, taken over from the dead."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event, local
from types import SimpleNamespace
from typing import Any

import pytest

from seld.errors import InputError
from trainables import stage_keys, stages
from trainables.stage_keys import StageKey, _code_of, code_fingerprint, stage_key
from trainables.stages import StageStore
from trainables.work_clock import WorkClock, seconds_worked

#: Audit events of everything that the store does to files.
FILE_EVENTS = {
    *(
        "open",
        "os.link",
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.listdir",
        "os.scandir",
    ),
    *("shutil.copyfile", "shutil.rmtree"),
}
KEY = StageKey(name="pretrain", digest="a" * 20)
#: Processes forked from one without threads, unlike pytest's own after tests of Ray and torch.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "trainables.stages"])
#: For a process of a second, on a machine that has other things to do.
JOIN_S = 300


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


def test_stages_below_a_folder_named_like_a_pattern_are_found(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "sh[1]*")
    store.obtain(KEY, _write_result)
    assert list(store.committed(KEY.name)) == [KEY.digest]


def test_keys_depend_on_everything_the_outcome_depends_on() -> None:
    def key(
        settings: dict[str, Any] | None = None, data: str = "d", inputs: tuple[StageKey, ...] = ()
    ) -> str:
        return stage_key(
            "pretrain",
            settings or {"steps": 3, "nested": {"a": 1.0}},
            data_fingerprint=data,
            inputs=inputs,
            code_of="seld.settings",
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
    monkeypatch.setattr(stage_keys, "SOURCE_PACKAGES", ("pretend",))

    def fingerprint() -> str:
        code_fingerprint.cache_clear()
        _code_of.cache_clear()
        return code_fingerprint("pretend.loop")

    original = fingerprint()
    (package / "loss.py").write_text(
        '"""Docs."""\n\n\ndef loss(value):\n    """More."""\n    # why\n    return (value + 1)\n'
    )
    assert fingerprint() == original
    (package / "loss.py").write_text("def loss(value):\n    return value + 2\n")
    assert fingerprint() != original
    monkeypatch.setattr(stage_keys, "CARRIERS", ("pretend.loss",))
    carried = fingerprint()
    (package / "loss.py").write_text("def loss(value):\n    return value + 3\n")
    assert fingerprint() == carried
    code_fingerprint.cache_clear()
    _code_of.cache_clear()


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
    with pytest.raises(InputError, match=r"5 bytes.*expected 25600 bytes") as caught:
        store.find(KEY)
    advised = re.search(r"remove (\S+) to redo it", caught.value.expected)
    assert advised is not None
    shutil.rmtree(advised[1])
    assert store.obtain(KEY, _write_result).computed


def test_a_fetched_copy_that_was_cleaned_up_is_fetched_again(tmp_path: Path) -> None:
    store = StageStore(f"memory://{tmp_path.name}", cache_dir=tmp_path)
    folder = store.obtain(KEY, _write_result).folder
    (folder / "nested/weights.bin").unlink()
    result = store.find(KEY)
    assert result is not None
    assert (result.folder / "nested/weights.bin").stat().st_size == 25600
    lock = f".{folder.name}.lock"
    assert sorted(path.name for path in folder.parent.iterdir()) == [lock, folder.name]


def test_of_processes_that_miss_a_copy_at_once_one_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads, which a file's lock tells apart as it does processes; all see it missing first."""
    store = StageStore(f"memory://{tmp_path.name}", cache_dir=tmp_path)
    shutil.rmtree(store.obtain(KEY, _write_result).folder)
    all_have_looked, seen, fetched = Barrier(4), local(), []
    damaged, download = stages._damaged, StageStore._download

    def look(*arguments: Any) -> list[str]:
        found = damaged(*arguments)
        if not hasattr(seen, "once"):
            seen.once = True
            all_have_looked.wait()
        return found

    def fetch(self: StageStore, *arguments: Any) -> None:
        fetched.append(arguments)
        download(self, *arguments)

    monkeypatch.setattr(stages, "_damaged", look)
    monkeypatch.setattr(StageStore, "_download", fetch)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: store.find(KEY), range(4)))
    assert len(fetched) == 1
    assert all(found and (found.folder / "nested/weights.bin").is_file() for found in results)


def test_users_of_one_machine_fetch_into_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own: list[Path] = []
    for user in (61001, 61002):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        own.append(StageStore(f"memory://{tmp_path.name}").obtain(KEY, _write_result).folder)
    tops = {folder.relative_to(tmp_path).parts[0] for folder in own}
    assert tops == {"seld-stages-61001", "seld-stages-61002"}


def test_a_relative_root_is_the_same_from_every_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(StageStore("stages"))
    (tmp_path / "trial").mkdir()
    monkeypatch.chdir(tmp_path / "trial")
    store: StageStore = pickle.loads(sent)
    assert store.obtain(KEY, _write_result).folder.is_relative_to(tmp_path / "stages")
    assert store.partial_uri(KEY).startswith(f"{tmp_path}/stages/")


def test_checkpoints_that_cannot_be_removed_do_not_undo_the_commit(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(folder: Path) -> Mapping[str, Any]:
        checkpoint = Path(store.partial_uri(KEY)) / "state.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"state")
        return _write_result(folder)

    def busy(path: str, recursive: bool = False) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(store._files, "rm", busy)
    assert store.obtain(KEY, compute).computed


@pytest.mark.parametrize("root", ["{tmp_path}/stages", "memory://{tmp_path.name}"])
def test_a_stage_lasts_as_long_as_was_worked_on_it(tmp_path: Path, root: str) -> None:
    """Up to the state that is gone on from, and from there; not the waiting for machines."""
    store = StageStore(root.format(tmp_path=tmp_path), cache_dir=tmp_path / "cache")
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "seconds.json").write_text('{"worked_s": 1000.0}')

    def compute(folder: Path) -> Mapping[str, Any]:
        time.sleep(0.5)  # until there is a machine
        began_s = time.monotonic()
        clock = WorkClock.going_on(kept)
        clock.write(folder)
        worked_s.append(1000.0 + time.monotonic() - began_s)
        time.sleep(0.5)  # until what it has made is brought here
        return _write_result(folder)

    worked_s: list[float] = []
    result = store.obtain(KEY, compute)
    assert 1000.0 <= result.duration_s <= worked_s[0]
    assert store.committed(KEY.name)[KEY.digest]["duration_s"] == result.duration_s


def test_a_stage_that_does_not_say_lasts_as_long_as_the_call(store: StageStore) -> None:
    def compute(folder: Path) -> Mapping[str, Any]:
        time.sleep(0.2)
        return _write_result(folder)

    assert store.obtain(KEY, compute).duration_s >= 0.2
    assert seconds_worked(store.obtain(KEY, compute).folder) is None


def _obtain_counting(root: Path, tally: Path, start: Any) -> None:
    start.wait()

    def compute(folder: Path) -> Mapping[str, Any]:
        with tally.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return _write_result(folder)

    StageStore(root).obtain(KEY, compute)


def test_of_many_processes_one_computes_and_the_others_wait(tmp_path: Path) -> None:
    start = PROCESSES.Event()
    tally = tmp_path / "tally"
    workers = [
        PROCESSES.Process(target=_obtain_counting, args=(tmp_path / "stages", tally, start))
        for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(JOIN_S)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert len(tally.read_text().splitlines()) == 1


def _compute_watched(root: Path, killed_before: int, count: Any) -> None:
    """Compute the stage; die before the file system is touched for the n-th time under ``root``."""
    touches = 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touches
        paths = [path for path in arguments if isinstance(path, (str, os.PathLike))]
        if event in FILE_EVENTS and any(str(path).startswith(str(root)) for path in paths):
            if touches == killed_before:
                os.kill(os.getpid(), signal.SIGKILL)
            touches += 1

    stages.HEARTBEAT_S = 3600.0  # a beat, on a slow machine, would be a touch more
    sys.addaudithook(on_event)
    StageStore(root).obtain(KEY, _write_result_with_checkpoint(root))
    count.value = touches


def _write_result_with_checkpoint(root: Path) -> Callable[[Path], Mapping[str, Any]]:
    def compute(folder: Path) -> Mapping[str, Any]:
        state = Path(StageStore(root).partial_uri(KEY)) / "state"
        state.parent.mkdir(exist_ok=True)
        state.write_bytes(b"state")
        return _write_result(folder)

    return compute


def _run_watched(root: Path, killed_before: int) -> tuple[int, int]:
    """Exit code and number of touches of a process that computes the stage."""
    count = PROCESSES.Value("i", 0)
    process = PROCESSES.Process(target=_compute_watched, args=(root, killed_before, count))
    process.start()
    process.join(JOIN_S)
    assert process.exitcode is not None
    return process.exitcode, count.value


def test_a_kill_before_any_touch_of_the_disk_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only a kill between creating and writing a lease leaves nobody's name to look up.
    monkeypatch.setattr(stages, "LEASE_EXPIRY_S", 0.2)
    monkeypatch.setattr(stages, "POLL_S", 0.05)
    code, touches = _run_watched(tmp_path / "whole", killed_before=-1)
    assert code == 0
    assert touches >= 20
    for touch in range(touches):
        root = tmp_path / str(touch)
        code, _ = _run_watched(root, killed_before=touch)
        assert code == -signal.SIGKILL
        store = StageStore(root)
        seen = store.find(KEY)
        result = store.obtain(KEY, _write_result_with_checkpoint(root))
        # Seen whole or not at all, and computed again exactly where it was not seen.
        assert result.computed == (seen is None)
        assert result.summary == {"loss": 0.25}
        assert (result.folder / "nested/weights.bin").read_bytes() == bytes(range(256)) * 100


def test_an_unwritten_lease_expires(
    store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = tmp_path / "stages" / KEY.path / "lease-00000.json"
    lease.parent.mkdir(parents=True)
    lease.touch()
    with store._lease(KEY) as held:
        assert not held
    monkeypatch.setattr(stages, "LEASE_EXPIRY_S", -1.0)  # time has passed
    with store._lease(KEY) as held:
        assert held


def test_what_a_killed_heartbeat_leaves_is_no_lease(store: StageStore, tmp_path: Path) -> None:
    folder = tmp_path / "stages" / KEY.path
    folder.mkdir(parents=True)
    (folder / ".lease-00000.json.0a1b").write_text("{")
    (folder / "lease-00000.json.0a1b.tmp").write_text("{")
    assert store.obtain(KEY, _write_result).computed


def test_a_lease_elsewhere_expires_once_its_heart_stands_still(
    store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of who waits: the owner's may be a minute behind."""
    folder = tmp_path / "stages" / KEY.path
    folder.mkdir(parents=True)
    lease = {"owner": "x", "host": "another-host", "pid": 1, "heartbeat": time.time() - 60}

    def is_free() -> bool:
        (folder / "lease-00000.json").write_text(json.dumps(lease))
        with store._lease(KEY) as held:
            return held

    assert not is_free()
    monkeypatch.setattr(stages, "LEASE_EXPIRY_S", -1.0)  # time passes between two looks
    lease["heartbeat"] += 5
    assert not is_free()
    assert is_free()


@pytest.mark.parametrize(("outage_s", "beats_before_s"), [(60.0, None), (700.0, 690.0)])
def test_a_heart_that_nobody_could_look_at_has_not_stood_still(
    outage_s: float,
    beats_before_s: float | None,
    store: StageStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its owner's beats may have failed as the looks did; it has some seconds to beat again."""
    folder = tmp_path / "stages" / KEY.path
    folder.mkdir(parents=True)
    lease = {"owner": "x", "host": "another-host", "pid": 1, "heartbeat": time.time()}
    clock_s = 0.0
    clocks = SimpleNamespace(time=time.time, monotonic=lambda: clock_s)

    def is_free(after_s: float) -> bool:
        nonlocal clock_s
        clock_s += after_s
        (folder / "lease-00000.json").write_text(json.dumps(lease))
        with monkeypatch.context() as patched:
            patched.setattr(stages, "time", clocks)
            with store._lease(KEY) as held:
                return held

    assert not is_free(0.0)
    assert not is_free(stages.REMOTE_POLL_S)
    if beats_before_s is not None:  # the last one before the outage has not been seen yet
        lease["heartbeat"] -= beats_before_s
    assert not is_free(outage_s)
    looks = [is_free(stages.REMOTE_POLL_S) for _ in range(10)]
    assert looks == [False] * 9 + [True]


def test_what_is_held_is_refused_while_its_holder_lives(
    store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(stages, "POLL_S", 0.01)
    other = StageStore(tmp_path / "stages")
    with store.hold(KEY) as mine:
        assert mine is None
        with other.hold(KEY) as holder:
            assert holder == f"{socket.gethostname()} (process {os.getpid()})"
    with other.hold(KEY) as mine:
        assert mine is None


def test_what_the_dead_held_is_free_once_their_heart_has_stood_still(
    store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "POLL_S", 0.01)
    monkeypatch.setattr(stages, "LEASE_EXPIRY_S", 0.1)
    folder = tmp_path / "stages" / KEY.path
    folder.mkdir(parents=True)
    lease = {"owner": "x", "host": "another-host", "pid": 1, "heartbeat": time.time()}
    (folder / "lease-00000.json").write_text(json.dumps(lease))
    waited_for: list[str] = []
    with store.hold(KEY, waiting=waited_for.append) as holder:
        assert holder is None
    assert set(waited_for) == {"another-host (process 1)"}


def test_a_lease_of_long_ago_is_free_at_once(store: StageStore, tmp_path: Path) -> None:
    folder = tmp_path / "stages" / KEY.path
    folder.mkdir(parents=True)
    lease = {"owner": "x", "host": "another-host", "pid": 1, "heartbeat": time.time() - 3600}
    (folder / "lease-00000.json").write_text(json.dumps(lease))
    with store._lease(KEY) as held:
        assert held


def test_a_disk_that_fails_once_does_not_end_the_heartbeat(
    store: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "HEARTBEAT_S", 0.01)
    write, beats, beat_again = store._write_json, iter([OSError(errno.EIO, "planted")]), Event()

    def failing_once(path: str, content: Mapping[str, Any]) -> None:
        for error in beats:
            raise error
        write(path, content)
        beat_again.set()

    def compute(folder: Path) -> Mapping[str, Any]:
        monkeypatch.setattr(store, "_write_json", failing_once)
        assert beat_again.wait(JOIN_S)
        return _write_result(folder)

    assert store.obtain(KEY, compute).computed


@pytest.mark.parametrize("planted", [None, RuntimeError("planted")])
def test_a_lease_that_cannot_be_let_go_of_hides_no_outcome(
    store: StageStore, monkeypatch: pytest.MonkeyPatch, planted: Exception | None
) -> None:
    write = store._write_json

    def failing_to_release(path: str, content: Mapping[str, Any]) -> None:
        if content.get("heartbeat") == 0.0:
            raise OSError(errno.EIO, "bucket out of reach")
        write(path, content)

    def compute(folder: Path) -> Mapping[str, Any]:
        if planted is not None:
            raise planted
        return _write_result(folder)

    monkeypatch.setattr(store, "_write_json", failing_to_release)
    if planted is None:
        assert store.obtain(KEY, compute).computed
        return
    with pytest.raises(RuntimeError, match="planted"):
        store.obtain(KEY, compute)
    monkeypatch.setattr(stages, "LEASE_EXPIRY_S", -1.0)  # time passes
    assert store.obtain(KEY, _write_result).computed


@pytest.mark.parametrize("root", ["{tmp_path}/stages", "memory://{tmp_path.name}"])
@pytest.mark.parametrize("has_links", [True, False])
def test_who_slept_for_longer_than_its_lease_takes_the_result_of_who_took_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, has_links: bool
) -> None:
    def no_links(source: Any, target: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(stages, "HEARTBEAT_S", 3600.0)
    monkeypatch.setattr(stages, "REMOTE_POLL_S", 0.01)
    monkeypatch.setattr(stages, "LEASE_EXPIRY_S", -1.0)
    sleeper, other = (
        StageStore(root.format(tmp_path=tmp_path), cache_dir=tmp_path / name)
        for name in ("sleeper", "other")
    )

    def sleep(folder: Path) -> Mapping[str, Any]:
        assert other.obtain(KEY, _write_result).computed
        return {"loss": 0.5}

    result = sleeper.obtain(KEY, sleep)
    assert not result.computed
    assert result.summary == {"loss": 0.25}
    assert (result.folder / "nested/weights.bin").is_file()
    found = other.find(KEY)
    assert found is not None
    assert found.summary == {"loss": 0.25}


@pytest.mark.parametrize("left", [b"", b'{"attempt": "att', bytes(300)])
def test_a_part_of_a_commit_commits_nothing(store: StageStore, tmp_path: Path, left: bytes) -> None:
    store.obtain(KEY, _write_result)
    (tmp_path / "stages" / KEY.path / "committed.json").write_bytes(left)
    assert store.find(KEY) is None
    assert store.committed(KEY.name) == {}
    assert store.location(KEY.name, KEY.digest) is None
    assert store.obtain(KEY, _write_result).computed
    assert set(store.committed(KEY.name)) == {KEY.digest}
