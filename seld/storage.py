"""Local paths and URIs (``s3://``, ``gs://``, ``memory://``…) in one spelling, through fsspec."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs

from seld.errors import InputError
from seld.temporary import temporary_folder

#: A file that nobody has written to for so long belongs to a process that is no more; clocks of
#: file servers differ by less.
UNFINISHED_S = 3600.0
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{32}")  # as written_whole calls it


def is_local(path: str) -> bool:
    """Whether ``path`` names something on this machine's disks."""
    return "://" not in path or path.startswith("file://")


def absolute(path: str) -> str:
    """The same file however it is spelt: worker processes may not share the working folder."""
    return os.path.abspath(path.removeprefix("file://")) if is_local(path) else path


def join(root: str, relative: str) -> str:
    """``root/relative`` for paths and URIs alike."""
    return f"{root.rstrip('/')}/{relative}"


def file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of ``path``, and the path as that file system spells it.

    Raises:
        InputError: the URI's protocol is unknown or its client library is not installed.
    """
    try:
        # A listing that is kept misses what other machines have written since.
        return url_to_fs(path, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        expected = f"a local path or a URI that fsspec can open here ({error})"
        raise InputError("storage", "path", path, expected) from error


def list_files(root: str) -> dict[str, int]:
    """As :func:`files_below`, of a folder that must hold something.

    Raises:
        InputError: ``root`` does not exist, holds no files or may not be read.
    """
    found = files_below(root)
    if not found:
        raise InputError(root, "files", "nothing", "a folder that exists and holds files")
    return found


def files_below(root: str) -> dict[str, int]:
    """Every file below ``root``: path relative to it (with ``/``) → size in bytes, sorted.

    Raises:
        InputError: ``root`` may not be read, or its bucket is out of reach.
    """
    if is_local(root):
        folder = Path(absolute(root))
        local = {path.relative_to(folder).as_posix(): path for path in files_within(folder)}
        # A link that leads to nothing is listed: it is missed where its content is asked for.
        return {name: _size(local[name]) for name in sorted(local)}
    files, inner_root = file_system(root)
    inner_root = inner_root.rstrip("/")
    try:
        found = dict(files.find(inner_root, detail=True)) if files.exists(inner_root) else {}
    except refusals(root) as error:
        expected = "a folder or bucket that can be read"
        raise InputError(root, "files", str(error), expected) from error
    sizes = {name[len(inner_root) + 1 :]: int(info["size"]) for name, info in found.items()}
    return dict(sorted(sizes.items()))


def files_within(folder: Path) -> Iterator[Path]:
    """Every file of a local folder and those below it, linked folders too, in order of name.

    ``Path.rglob`` and fsspec pass by folders that are links, as those of a corpus spread over
    disks are.

    Raises:
        InputError: a folder may not be read.
    """
    return _files_within(folder, frozenset())


def _files_within(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    if not folder.is_dir():
        return
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:  # a link back to where we came from
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise InputError(folder, "folder", error.strerror, "one that can be read") from error
    for entry in entries:
        # A link that goes in a circle, or where we may not look, is no folder.
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from _files_within(Path(entry.path), above | {identity})
        else:
            yield Path(entry.path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def stamps(paths: Iterable[str]) -> dict[str, str]:
    """What changes when a file does: size and time or entity tag; "missing" where there is none.

    Each folder is listed once, so that this is quick for many files of an object store.
    """
    by_folder: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for path in paths:
        if is_local(path):
            found[path] = _local_stamp(Path(absolute(path)))
        else:
            by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    for folder, members in by_folder.items():
        files, inner = file_system(folder)
        listed = files.ls(inner, detail=True) if files.isdir(inner) else []
        infos = {info["name"].rpartition("/")[2]: info for info in listed}
        for path in members:
            info = infos.get(path.rpartition("/")[2])
            changed = info and (info.get("mtime") or info.get("ETag") or info.get("created"))
            found[path] = f"{info['size']} {changed}" if info else "missing"
    return found


def _local_stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    # Giving the right to read a file changes neither its size nor its time.
    refused = "" if os.access(path, os.R_OK) else " not readable"
    return f"{status.st_size} {status.st_mtime}{refused}"


def check_writable(folder: str) -> None:
    """Raise :class:`InputError` unless files can be written into ``folder`` (made if missing)."""
    probe = join(folder, f".writable-{uuid.uuid4().hex}")
    try:
        with written_whole(probe) as temporary:
            temporary.write_bytes(b"")
        files, inner = file_system(probe)
        files.rm_file(inner)
    except refusals(folder) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(folder, "folder", reason, "one that can be written") from error


def refusals(path: str) -> tuple[type[Exception], ...]:
    """What is raised where files of this path's file system cannot be read or written."""
    if path.startswith("s3://"):
        with suppress(ImportError):  # then opening it says so
            from botocore.exceptions import BotoCoreError, ClientError

            return (OSError, BotoCoreError, ClientError)
    return (OSError,)


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """A file of this machine with the content of ``path``; a URI is fetched and removed after.

    Raises:
        FileNotFoundError: there is no such file, or none that we may know of.
    """
    if is_local(path):
        local = Path(path.removeprefix("file://"))
        if not os.path.isfile(local):  # Path.is_file raises where we may not look
            raise FileNotFoundError(path)
        yield local
        return
    files, inner = file_system(path)
    with temporary_folder() as folder:
        local = folder / inner.rsplit("/", 1)[-1]
        files.get_file(inner, str(local))
        yield local


@contextmanager
def written_whole(path: str) -> Iterator[Path]:
    """A local file to write, which becomes ``path`` once the block ends without an error.

    Readers see the finished file or none: a rename locally, one upload to an object store.
    """
    if is_local(path):
        target = Path(path.removeprefix("file://"))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return
    files, inner = file_system(path)
    with temporary_folder() as folder:
        temporary = folder / "file"
        yield temporary
        files.put_file(str(temporary), inner)


def remove_unfinished(folder: str, names: Set[str]) -> None:
    """Remove what killed processes have left of these files in :func:`written_whole`.

    Another process may be writing one of them right now: what has changed in the last
    :data:`UNFINISHED_S` stays. Nothing is left of what goes to an object store.
    """
    if not is_local(folder):
        return
    for path in Path(absolute(folder)).iterdir():
        left = _UNFINISHED.fullmatch(path.name)
        if left and left[1] in names:
            with suppress(FileNotFoundError):  # it has just become what it was written for
                if time.time() - path.stat().st_mtime > UNFINISHED_S:
                    path.unlink()


def upload_folder(folder: Path, uri: str) -> None:
    """Copy the files below a local folder to ``uri``, in the order of their names.

    One that is there with the same size, written since the local one was, is left as it is, where
    the file system says when its files were written (S3 does).
    """
    files, inner = file_system(uri)
    inner = inner.rstrip("/")
    there = dict(files.find(inner, detail=True)) if files.exists(inner) else {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        target = f"{inner}/{path.relative_to(folder).as_posix()}"
        info, local = there.get(target, {}), path.stat()
        written = info.get("LastModified")
        if not written or info["size"] != local.st_size or written.timestamp() < local.st_mtime:
            files.put_file(str(path), target)


def fetch_folder(uri: str, folder: Path) -> None:
    """Copy every file below ``uri`` into a local folder.

    Raises:
        InputError: there are none.
    """
    fetch_files(uri, list_files(uri), folder)


def fetch_files(uri: str, names: Iterable[str], folder: Path) -> None:
    """Copy these files below ``uri`` into a local folder, one after the other."""
    files, inner = file_system(uri)
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(str(target)) as temporary:
            files.get_file(join(inner, name), str(temporary))
