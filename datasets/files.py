"""Folders that appear whole or not at all, and the clearing of what a crash left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".partial-"  # every unfinished file or folder of ours begins with this


class DiskFull(OSError):
    """No space is left; what was finished before is kept."""


def temporary_name(name: str) -> str:
    """A hidden neighbour's name that no other process or machine uses at the same time."""
    return f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{name}"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a hidden sibling of `path`, flush it to disk, then rename it to `path`.

    If `path` appeared meanwhile (another process redid the same deterministic work), that one is kept.

    Raises:
        DiskFull: No space left; nothing of the folder remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with full_disk_named(path.parent):
            temporary.mkdir()
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


def replace_file(temporary: Path, path: Path) -> None:
    """Flush a finished temporary file and put it in `path`'s place."""
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


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
    """Delete what crashed processes left under `root`; answers how many items.

    Each item is renamed before it is deleted, so that a writer that is still alive fails on its own rename
    rather than publishing a half-deleted folder.
    """
    count = 0
    for folder, names, files in os.walk(root):
        for name in [n for n in names + files if n.startswith(TEMPORARY)]:
            item = Path(folder) / name
            doomed = item.with_name(f"{TEMPORARY}doomed-{os.getpid()}-{count}")
            try:
                os.rename(item, doomed)
            except FileNotFoundError:
                continue  # its writer finished or cleared it meanwhile
            if doomed.is_dir():
                shutil.rmtree(doomed)
            else:
                doomed.unlink()
            count += 1
        names[:] = [n for n in names if not n.startswith(TEMPORARY)]
    return count


def clear_abandoned(path: Path) -> None:
    """Delete what killed processes of this machine left of `path` in its folder; those that live keep theirs."""
    pattern = re.compile(rf"{re.escape(f'{TEMPORARY}{socket.gethostname()}-')}(\d+)-{re.escape(path.name)}")
    for item in path.parent.glob(f"{TEMPORARY}*"):
        match = pattern.fullmatch(item.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(item)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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
