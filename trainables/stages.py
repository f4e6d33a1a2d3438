"""Finished work, stored once under what it was made from, and shared between trials.

A stage's key is a digest of its settings, of the data it reads, of the stages it builds on and
of the code that matters to it. Its folder in the store::

    <root>/<stage>/<key>/
      lease-00000.json       who computes it, with a heartbeat (numbered: a takeover adds one)
      partial/...            checkpoints of the computation under way
      attempt-<id>/...       the files of one attempt
      committed.json         the attempt that counts: the first that was done. Written after its
                             files, so seeing it is seeing all

Everything goes through fsspec, so the root is a local or shared folder or a bucket URI.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seld.errors import InputError
from seld.locks import one_at_a_time
from seld.storage import (
    absolute,
    file_system,
    files_below,
    is_local,
    join,
    stamps,
    written_whole,
)
from seld.temporary import temporary_folder
from trainables.stage_keys import StageKey
from trainables.work_clock import seconds_worked

#: A lease whose heartbeat has stood still for this long belongs to nobody any more.
LEASE_EXPIRY_S = 45.0
#: Between looks further apart a heart has not been seen to stand still: what kept one from looking,
#: a network disk that hangs, may have kept its owner from beating. A few of the slowest polls.
LOOKS_APART_S = 15.0
#: No two machines' clocks differ by more.
CLOCKS_DIFFER_S = 600.0
HEARTBEAT_S = 5.0
POLL_S = 0.5
#: A bucket takes money for every look.
REMOTE_POLL_S = 5.0
#: The heartbeat of a lease whose owner has let go of it.
LET_GO = 0.0
LEASE_NAME = re.compile(r"lease-(\d{5})\.json")

#: What a computation goes on from.
STATE_FILE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A committed stage: its files in a local folder, and how it came about."""

    key: StageKey
    folder: Path
    computed: bool
    duration_s: float
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageFiles:
    """The files of a committed stage, for a process that may be on another machine."""

    store: StageStore
    key: StageKey

    @property
    def folder(self) -> Path:
        """A local folder of them, fetched where the store is remote."""
        result = self.store.find(self.key)
        assert result is not None, f"{self.key.path} is not committed"
        return result.folder


@dataclass(frozen=True, kw_only=True)
class _Look:
    """The last successful look at a lease, in seconds of our clock.

    Attributes:
        beat: the heartbeat that was there.
        still_since_s: since when it has been seen unchanged, without a gap.
        at_s: when this look was.
    """

    beat: float
    still_since_s: float
    at_s: float


class StageStore:
    """Where finished stages are kept.

    Args:
        root: folder or URI (``s3://``, ``gs://``, …).
        cache_dir: where a remote stage's files are fetched to, by default a temporary folder of
            this user's; unused for local roots.

    Raises:
        InputError: the URI cannot be opened here.
    """

    def __init__(self, root: str | Path, *, cache_dir: str | Path | None = None) -> None:
        # Tune runs every trial in a working folder of its own.
        self.root = absolute(str(root))
        self._files, self._base = file_system(self.root)
        self._local = is_local(self.root)
        self._cache = Path(cache_dir or Path(tempfile.gettempdir()) / f"seld-stages-{os.getuid()}")
        self._looks: dict[str, _Look] = {}  # by lease, the last one

    def __reduce__(self) -> tuple[Any, ...]:
        return (_open_store, (self.root, str(self._cache)))

    def find(self, key: StageKey) -> StageResult | None:
        """The committed stage, fetched to a local folder; None where there is none."""
        commit = self._read_commit(key.path)
        return None if commit is None else self._result(key, commit, computed=False)

    def committed(self, name: str) -> dict[str, dict[str, Any]]:
        """What is known of all finished stages of a name, by digest."""
        paths = map(str, self._files.glob(f"{glob.escape(self._base)}/{name}/*/committed.json"))
        commits = {
            (digest := path.split("/")[-2]): self._read_commit(f"{name}/{digest}") for path in paths
        }
        return {digest: commit for digest, commit in commits.items() if commit is not None}

    def location(self, name: str, digest: str) -> str | None:
        """Folder or URI of a committed stage's files; None where there is none."""
        commit = self._read_commit(f"{name}/{digest}")
        return None if commit is None else join(self.root, f"{name}/{digest}/{commit['attempt']}")

    def obtain(
        self,
        key: StageKey,
        compute: Callable[[Path], Mapping[str, Any]],
        *,
        waiting: Callable[[str], None] = lambda owner: None,
    ) -> StageResult:
        """The stage's result: stored, or computed here, or awaited from whoever computes it.

        Args:
            key: which stage.
            compute: fills the folder it is given and returns a JSON-ready summary. The stage lasted
                as long as a :class:`WorkClock` says there; without one, as long as this call.
            waiting: told, at intervals, who is being waited for.

        Returns:
            The result; ``computed`` says whether it was made by this call.
        """
        while True:
            result = self.find(key)
            if result is not None:
                self._drop_checkpoints(key)  # who committed it may have died before doing so
                return result
            with self._lease(key) as held:
                if held:
                    # It may have been committed between the look and the lease.
                    return self.find(key) or self._compute_and_commit(key, compute)
            waiting(self._holder(key))
            time.sleep(self._poll_s)

    @contextmanager
    def hold(
        self, key: StageKey, *, waiting: Callable[[str], None] = lambda owner: None
    ) -> Iterator[str | None]:
        """Hold ``key`` for the block's time, for work that nobody else may do meanwhile.

        Args:
            key: of what is no stage: nothing is committed.
            waiting: told of a holder that it takes a while to tell alive from dead.

        Yields:
            None where it is held, else who holds it and is alive.
        """
        _, before = self._latest_lease(key)
        while True:
            with self._lease(key) as held:
                if held:
                    yield None
                    return
            holder = self._holder(key)
            if self._latest_lease(key)[1] != before:  # a heart that beats
                yield holder
                return
            waiting(holder)
            time.sleep(self._poll_s)

    def partial_uri(self, key: StageKey) -> str:
        """Where the computation under way may keep its checkpoints."""
        return join(self.root, f"{key.path}/partial")

    def progress_of(self, key: StageKey) -> dict[str, str]:
        """The states that a computation under way has kept, with their stamps."""
        return stamps(join(self.partial_uri(key), name) for name in self._states(key))

    def _states(self, key: StageKey) -> list[str]:
        """The states that are kept, relative to :meth:`partial_uri`."""
        names = files_below(self.partial_uri(key))
        return [name for name in names if name.rpartition("/")[2] == STATE_FILE]

    @property
    def _poll_s(self) -> float:
        return POLL_S if self._local else REMOTE_POLL_S

    def _drop_checkpoints(self, key: StageKey) -> None:
        """Remove what a committed stage kept while it was under way."""
        partial = f"{self._base}/{key.path}/partial"
        # Another process drops them too, and a network disk keeps what is still open; whoever
        # asks for the stage next tries again.
        with contextlib.suppress(OSError):
            if self._files.exists(partial):
                self._files.rm(partial, recursive=True)

    def _compute_and_commit(
        self, key: StageKey, compute: Callable[[Path], Mapping[str, Any]]
    ) -> StageResult:
        started = time.monotonic()
        with temporary_folder() as folder:
            summary = dict(compute(folder))
            waited_too_s = time.monotonic() - started
            worked_s = seconds_worked(folder)
            duration_s = waited_too_s if worked_s is None else worked_s
            commit, is_ours = self._commit(key, folder, summary, duration_s)
        return self._result(key, commit, computed=is_ours)

    def _result(self, key: StageKey, commit: Mapping[str, Any], *, computed: bool) -> StageResult:
        return StageResult(
            key=key,
            folder=self._fetch(key, commit),
            computed=computed,
            duration_s=commit["duration_s"],
            summary=commit["summary"],
        )

    def _commit(
        self, key: StageKey, folder: Path, summary: dict[str, Any], duration_s: float
    ) -> tuple[dict[str, Any], bool]:
        """The commit that counts, and whether it is this one."""
        attempt = f"attempt-{uuid.uuid4().hex[:12]}"
        names = sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
        )
        for name in names:
            target = f"{self._base}/{key.path}/{attempt}/{name}"
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(folder / name), target)
        commit = {
            "attempt": attempt,
            "files": {name: (folder / name).stat().st_size for name in names},
            "summary": summary,
            "duration_s": duration_s,
            "alike": key.alike,
            "host": socket.gethostname(),
        }
        path = f"{key.path}/committed.json"
        try:
            self._create_json(path, commit)
        except FileExistsError:
            # Who has slept for longer than its lease finds that others build on another's result.
            first = self._read_commit(key.path)
            if first is None:  # but a damaged one
                self._write_json(path, commit)
            else:
                commit = first
        # Checkpoints of a finished computation have served their purpose.
        self._drop_checkpoints(key)
        return commit, commit["attempt"] == attempt

    def _fetch(self, key: StageKey, commit: Mapping[str, Any]) -> Path:
        source = f"{self._base}/{key.path}/{commit['attempt']}"
        files: Mapping[str, int] = commit["files"]
        folder = Path(source) if self._local else self._cache / key.path / commit["attempt"]
        if not self._local and _damaged(folder, files):
            # Never fetched, or what cleans up temporary folders has been at it. By one process at a
            # time: another's fetch that ends here and now must not be removed as damaged.
            with one_at_a_time(folder.with_name(f".{folder.name}.lock")):
                if _damaged(folder, files):
                    shutil.rmtree(folder, ignore_errors=True)
                    self._download(source, folder, list(files))
        for name in _damaged(folder, files):
            path = folder / name
            found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            stage = join(self.root, key.path)
            raise InputError(
                path, "committed file", found, f"{files[name]} bytes; remove {stage} to redo it"
            )
        return folder

    def _download(self, source: str, folder: Path, names: list[str]) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".fetch-"))
        try:
            for name in names:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # is missed by who asked for it
                    self._files.get_file(f"{source}/{name}", str(scratch / name))
            with contextlib.suppress(OSError):  # another process fetched the same files first
                scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def _lease(self, key: StageKey) -> Iterator[bool]:
        """Hold the right to compute ``key`` for the block's time, or yield False."""
        number, lease = self._latest_lease(key)
        path = f"{key.path}/lease-{number:05d}.json"
        if lease is not None and not self._abandoned(path, lease):
            yield False
            return
        path = f"{key.path}/lease-{number + 1:05d}.json"
        content = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._files.makedirs(f"{self._base}/{key.path}", exist_ok=True)
        try:
            # Exclusive creation: of several takers exactly one gets this number.
            self._create_json(path, content | {"heartbeat": time.time()})
        except FileExistsError:
            yield False
            return
        done = threading.Event()
        beating = threading.Thread(
            target=self._keep_beating, args=(path, content, done), daemon=True
        )
        beating.start()
        try:
            yield True
        finally:
            done.set()
            beating.join()
            # The block's outcome counts, error or not; a lease not let go of expires by itself.
            with contextlib.suppress(Exception):
                self._write_json(path, content | {"heartbeat": LET_GO})

    def _keep_beating(self, path: str, content: dict[str, Any], done: threading.Event) -> None:
        while not done.wait(HEARTBEAT_S):
            # A disk or a bucket that fails once has not ended the computation.
            with contextlib.suppress(Exception):
                self._write_json(path, content | {"heartbeat": time.time()})

    def _abandoned(self, path: str, lease: Mapping[str, Any]) -> bool:
        """Whether the owner has let go of the lease, has died or has not been heard of.

        Clocks of machines differ: what counts is for how long, by our own, its heart has stood
        still, in looks that were never far apart. Only a beat further back than clocks can differ
        needs no waiting for.
        """
        beat = lease["heartbeat"]
        if beat == LET_GO or (
            lease["host"] == socket.gethostname() and not _process_runs(lease["pid"])
        ):
            return True
        now, last = time.monotonic(), self._looks.get(path)
        if last is None or last.beat != beat or now - last.at_s > LOOKS_APART_S:
            self._looks[path] = _Look(beat=beat, still_since_s=now, at_s=now)
            # Of one that has been watched it is known that it beat, however long ago by now.
            return last is None and time.time() - beat > CLOCKS_DIFFER_S
        self._looks[path] = replace(last, at_s=now)
        return now - last.still_since_s > LEASE_EXPIRY_S

    def _latest_lease(self, key: StageKey) -> tuple[int, dict[str, Any] | None]:
        folder = f"{self._base}/{key.path}"
        if not self._files.exists(folder):
            return -1, None
        names = [path.rpartition("/")[2] for path in self._files.ls(folder, detail=False)]
        leases = [match for match in map(LEASE_NAME.fullmatch, names) if match]
        if not leases:
            return -1, None
        number = max(int(match[1]) for match in leases)
        path = f"{key.path}/lease-{number:05d}.json"
        try:
            return number, self._read_json(path)
        except json.JSONDecodeError:
            # Its taker has created it but not written it yet, or was killed in between: then
            # it expires like a heart that stopped at birth.
            created = self._files.modified(f"{self._base}/{path}").timestamp()
            return number, {"host": "unknown", "pid": 0, "heartbeat": created}

    def _holder(self, key: StageKey) -> str:
        _, lease = self._latest_lease(key)
        return f"{lease['host']} (process {lease['pid']})" if lease else "another trial"

    def _read_json(self, path: str) -> dict[str, Any] | None:
        try:
            return json.loads(self._files.cat_file(f"{self._base}/{path}"))
        except FileNotFoundError:
            return None

    def _read_commit(self, stage: str) -> dict[str, Any] | None:
        """What makes a stage (its path) committed; None where nothing does, or a part of it."""
        try:
            return self._read_json(f"{stage}/committed.json")
        except ValueError:  # left by a disk that was full or lost power
            return None

    def _create_json(self, path: str, content: Mapping[str, Any]) -> None:
        """Write a file that must not exist; FileExistsError where another was first."""
        target = f"{self._base}/{path}"
        data = json.dumps(content).encode()
        if not self._local:
            self._files.pipe_file(target, data, mode="create")
            return
        # fsspec's own "create" of local files looks first and writes then, which two can do.
        temporary = Path(f"{target}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(data)
            os.link(temporary, target)  # unlike a rename, replaces nothing
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            # A disk without hard links shows a part for a moment; readers put up with it.
            with open(target, "xb") as stream:
                stream.write(data)
        finally:
            temporary.unlink(missing_ok=True)

    def _write_json(self, path: str, content: Mapping[str, Any]) -> None:
        target = f"{self._base}/{path}"
        data = json.dumps(content).encode()
        if self._local:
            with written_whole(target) as temporary:
                temporary.write_bytes(data)
        else:
            self._files.pipe_file(target, data)  # a bucket shows an object whole or not at all


def _open_store(root: str, cache_dir: str) -> StageStore:
    return StageStore(root, cache_dir=cache_dir)


def _damaged(folder: Path, files: Mapping[str, int]) -> list[str]:
    """Names of the files that ``folder`` does not hold in their sizes."""
    return [
        name
        for name, size in files.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != size
    ]


def _process_runs(pid: int) -> bool:
    if pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
