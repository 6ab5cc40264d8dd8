"""Files and folders that appear whole or not at all, and the clearing of what a crash left behind.

A writer fills a hidden neighbour and renames it in the end. While it lives it holds a lock (`flock`) on what it fills,
which the kernel takes back however the process ends: whatever is hidden and unlocked is a dead writer's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from armworld.evaluation.files import plain

TEMPORARY = ".partial-"  # every unfinished file or folder of ours begins with this
# What `flock` answers on file systems without it; NFS has it for files, not for folders.
NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class DiskFull(OSError):
    """No space is left; what was finished before is kept."""


def temporary_name(name: str) -> str:
    """A hidden neighbour's name that no other writer uses."""
    return f"{TEMPORARY}{secrets.token_hex(4)}-{name}"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a hidden sibling of `path`, flush it to disk, then rename it to `path`.

    If `path` appeared meanwhile (another process redid the same deterministic work), that one is kept.

    Raises:
        DiskFull: No space left; nothing of the folder remains.
    """
    with full_disk_named(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = _begin_folder(path)
        try:
            yield temporary
            _flush_tree(temporary)
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(handle)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write to a hidden sibling of `path`, flush it to disk, then put it in `path`'s place.

    Raises:
        DiskFull: No space left; `path` is as it was.
    """
    with full_disk_named(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = _begin_file(path)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            file.close()


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or nothing, by `new_file`."""
    with new_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), whole or not at all, by `new_file`."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def _begin_folder(path: Path) -> tuple[Path, int]:
    """A new hidden sibling folder, and the open handle that holds its lock."""
    while True:
        temporary = path.with_name(temporary_name(path.name))
        temporary.mkdir()
        try:
            handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # cleared before it could be locked
        if _hold(handle):
            return temporary, handle
        os.close(handle)


def _begin_file(path: Path) -> tuple[Path, BinaryIO]:
    """A new hidden sibling file, open for writing and locked."""
    while True:
        temporary = path.with_name(temporary_name(path.name))
        file = open(temporary, "xb")  # noqa: SIM115  closed by `new_file`
        if _hold(file.fileno()):
            return temporary, file
        file.close()


def _hold(handle: int) -> bool:
    """Lock an unfinished item for its writer; False where it was cleared between its creation and this."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return os.fstat(handle).st_nlink > 0


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn whatever a library raises on a full disk into one `DiskFull` that names the folder."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if _is_full(error):
            raise DiskFull(errno.ENOSPC, f"no space left on the disk of {folder}; finished work is kept") from error
        raise


def flush(path: Path) -> None:
    """Force a file's or a folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(folder: Path) -> None:
    for item in sorted(folder.rglob("*")):
        flush(item)
    flush(folder)


def _is_full(error: BaseException | None) -> bool:
    """Whether ENOSPC (or a quota) is behind `error`; h5py and FFmpeg keep the number only in their text."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def clear_partial(root: Path) -> int:
    """Delete what dead writers left anywhere under `root`, whose lock (`exclusive`) the caller holds.

    Answers how many items. Those of writers that live, in `.cache/` for instance, stay.
    """
    count = 0
    for folder, names, files in os.walk(root):
        hidden = [Path(folder) / name for name in names + files if name.startswith(TEMPORARY)]
        count += sum(_clear(item, without_locks=True) for item in hidden)
        names[:] = [n for n in names if not n.startswith(TEMPORARY)]
    return count


def clear_abandoned(path: Path) -> None:
    """Delete what dead writers left of `path` beside it; no lock of the folder is needed."""
    pattern = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]{{8}}-{re.escape(path.name)}")
    for item in path.parent.glob(f"{TEMPORARY}*"):
        if pattern.fullmatch(item.name):
            _clear(item, without_locks=False)


def _clear(item: Path, without_locks: bool) -> bool:
    """Delete an unfinished item unless its writer lives; whether it was deleted.

    Args:
        item: A hidden file or folder.
        without_locks: Also delete it where the file system knows no locks and nobody can tell.
    """
    try:
        handle = os.open(item, os.O_RDONLY)
    except FileNotFoundError:
        return False  # its writer finished or cleared it meanwhile
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS or not without_locks:
                return False
        # Renamed first: a writer that could not be seen to live fails on its own rename, rather than publishing
        # half a folder.
        doomed = item.with_name(temporary_name("doomed"))
        try:
            os.rename(item, doomed)
        except FileNotFoundError:
            return False
        if doomed.is_dir():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()
        return True
    finally:
        os.close(handle)


def check_own_folder(folder: Path, mark: str, kind: str) -> None:
    """ValueError where `folder` is a file, or holds anything and not the file `mark`, which every `kind` of ours has.

    Hidden things (locks, what dead writers left) do not count.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a {kind} needs a folder of its own")
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if there and mark not in there:
        some = ", ".join(there[:3])
        raise ValueError(f"{folder} holds something that is no {kind} of ours ({some}); choose another folder")


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold `root` for one writer; the lock ends with the process, however it ends.

    Raises:
        ValueError: Another process writes there now.
    """
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ValueError(f"another process is writing to {root}; wait for it or choose another folder") from error
    try:
        yield
    finally:
        os.close(handle)
