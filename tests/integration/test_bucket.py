"""The stage store in a bucket: a real S3 server on loopback, real processes, real kills."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import s3fs
from s3_server import environment_of, open_server

from trainables import stages
from trainables.stage_keys import StageKey
from trainables.stages import StageStore

KEY = StageKey(name="pretrain", digest="a" * 20, alike="b" * 20)
#: More than s3fs uploads in one request (100 MiB): an upload can be interrupted between parts.
WEIGHTS_BYTES = 101 * 2**20


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an empty bucket; every process started from here finds its server."""
    server = open_server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in environment_of(server.server_port).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    for name in files.ls(""):  # moto's account outlives its server within a process
        files.rm(name, recursive=True)
    if not files.exists("stages"):
        files.mkdir("stages")
    yield "s3://stages/runs"
    server.shutdown()
    thread.join()
    server.server_close()
    s3fs.S3FileSystem.clear_instance_cache()


def _write_result(folder: Path) -> Mapping[str, Any]:
    (folder / "nested").mkdir()
    (folder / "nested/weights.bin").write_bytes(bytes(range(256)) * 100)
    return {"loss": 0.25}


def test_a_stage_is_computed_once_and_fetched_elsewhere(bucket: str, tmp_path: Path) -> None:
    here = StageStore(bucket, cache_dir=tmp_path / "here")
    elsewhere = StageStore(bucket, cache_dir=tmp_path / "elsewhere")
    assert here.obtain(KEY, _write_result).computed
    found = elsewhere.obtain(KEY, lambda folder: pytest.fail("computed again"))
    assert not found.computed
    assert found.summary == {"loss": 0.25}
    assert found.folder.is_relative_to(tmp_path / "elsewhere")
    assert (found.folder / "nested/weights.bin").read_bytes() == bytes(range(256)) * 100
    assert set(elsewhere.committed("pretrain")) == {KEY.digest}


def test_checkpoints_of_a_finished_stage_are_removed(bucket: str, tmp_path: Path) -> None:
    store = StageStore(bucket, cache_dir=tmp_path)
    files = s3fs.S3FileSystem()
    checkpoint = f"{store.partial_uri(KEY)}/checkpoint_000001/state.pt"
    files.pipe_file(checkpoint, b"state")
    store.obtain(KEY, _write_result)
    assert not files.exists(checkpoint)


def _obtain_counting(root: str, cache: Path, tally: Path, start: Any) -> None:
    start.wait()

    def compute(folder: Path) -> Mapping[str, Any]:
        with tally.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return _write_result(folder)

    StageStore(root, cache_dir=cache).obtain(KEY, compute)


@pytest.mark.slow
def test_of_many_processes_one_computes_and_the_others_wait(bucket: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    tally = tmp_path / "tally"
    workers = [
        context.Process(
            target=_obtain_counting, args=(bucket, tmp_path / str(number), tally, start)
        )
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(tally.read_text().splitlines()) == 1


def test_a_lease_is_taken_by_exactly_one(bucket: str, tmp_path: Path) -> None:
    first, second = (StageStore(bucket, cache_dir=tmp_path) for _ in range(2))
    # Both have looked and seen no lease; only the bucket can decide now.
    no_lease = lambda key: (-1, None)  # noqa: E731
    first._latest_lease = second._latest_lease = no_lease  # type: ignore[method-assign]
    with first._lease(KEY) as mine, second._lease(KEY) as theirs:
        assert (mine, theirs) == (True, False)


def _compute_until_killed(root: str, cache: Path, marker: Path, point: str) -> None:
    # What a killed process leaves goes where the test's own files go.
    cache.mkdir()
    tempfile.tempdir = str(cache)
    store = StageStore(root, cache_dir=cache)

    def hang(*arguments: Any, **options: Any) -> Any:
        marker.touch()
        signal.pause()

    def compute(folder: Path) -> Mapping[str, Any]:
        if point == "computing":
            hang()
        (folder / "small.bin").write_bytes(b"small")
        (folder / "weights.bin").write_bytes(bytes(WEIGHTS_BYTES))
        return {"loss": 1.0}

    if point == "between files":
        _hang_at_call(store._files, "put_file", 2, hang)
    if point == "between parts":
        call_s3 = store._files._call_s3

        async def call_but_not_complete(method: str, *arguments: Any, **options: Any) -> Any:
            if method == "complete_multipart_upload":
                hang()
            return await call_s3(method, *arguments, **options)

        store._files._call_s3 = call_but_not_complete
    if point == "committing":
        _hang_at_call(store, "_create_json", 2, hang)  # the first is the lease
    store.obtain(KEY, compute)


def _hang_at_call(owner: Any, name: str, number: int, hang: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    calls = iter(range(1, number + 1))

    def call(*arguments: Any, **options: Any) -> Any:
        return hang() if next(calls) == number else original(*arguments, **options)

    setattr(owner, name, call)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["computing", "between files", "between parts", "committing"])
def test_an_interrupted_upload_is_never_seen_and_done_again(
    bucket: str, tmp_path: Path, point: str
) -> None:
    context = multiprocessing.get_context("spawn")
    marker = tmp_path / "reached"
    victim = context.Process(
        target=_compute_until_killed, args=(bucket, tmp_path / "victim", marker, point)
    )
    victim.start()
    while not marker.exists():
        assert victim.is_alive()
        time.sleep(0.05)
    store = StageStore(bucket, cache_dir=tmp_path / "store")
    assert store.find(KEY) is None
    assert store.committed("pretrain") == {}
    if point == "between parts":
        assert not [path for path in s3fs.S3FileSystem().find("stages") if "weights" in path]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    result = store.obtain(KEY, _write_result)
    assert result.computed
    assert result.summary == {"loss": 0.25}
    assert sorted(path.name for path in result.folder.rglob("*.bin")) == ["weights.bin"]


def test_a_lost_machine_is_waited_for_until_its_heart_has_stopped(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(bucket, cache_dir=tmp_path)
    lease = {"owner": "x", "host": "a-lost-machine", "pid": 1, "heartbeat": time.time()}
    path = f"{KEY.path}/lease-00000.json"
    store._write_json(path, lease)
    with store._lease(KEY) as held:
        assert not held
    monkeypatch.setattr(stages, "LEASE_EXPIRY_S", -1.0)  # time has passed without a beat
    with store._lease(KEY) as held:
        assert held
