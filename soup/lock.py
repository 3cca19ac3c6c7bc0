"""One command at a time in an output folder: a lock that the system releases with its process, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from soup import SoupError
from soup.files import DISK_FULL

LOCK_NAME = ".soup-lock"
_ATTEMPTS = 100
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold `folder` while `command` ("soup build") works in it; the file that says so is gone afterwards.

    A missing folder is made, and removed again if it is then empty. What a killed process left never blocks. Where the
    file system has no locks it goes on without.
    Raises SoupError where another process holds it, or where it cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        descriptor = _acquired(folder, command)
        try:
            yield
        finally:
            _release(descriptor, folder / LOCK_NAME)
    finally:
        with contextlib.suppress(OSError):  # in use
            for path in missing:
                path.rmdir()


def _acquired(folder: Path, command: str) -> int:
    path = folder / LOCK_NAME
    for left in reversed(range(_ATTEMPTS)):
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = _opened(path)
            except FileNotFoundError:  # its owner has just removed the folder that it had made
                if left:
                    continue
                raise
        try:
            ours = _is_locked_by_us(descriptor, folder) and _is_at(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        if ours:
            try:
                with _told(folder):
                    _sign(descriptor, command)
            except BaseException:
                _release(descriptor, path)
                raise
            return descriptor
        os.close(descriptor)  # an owner removed the file between our opening it and its lock: look again
    raise SoupError(f"{folder}: other commands come and go here. Wait for them, or choose another -o.")


def _opened(path: Path) -> int:
    """Never through a link, which could have us write anywhere."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ELOOP, "not a file", str(path))
    return descriptor


def _is_locked_by_us(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SoupError(f"{folder}: {_owner(descriptor)}. Wait for it, or choose another -o.") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _LOG.warning("%s: the file system has no locks; let no other command work here meanwhile", folder)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _sign(descriptor: int, command: str) -> None:
    text = json.dumps({"pid": os.getpid(), "command": command, "since": time.time()})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _release(descriptor: int, path: Path) -> None:
    """Removed while it is held, so that whoever waits for this very file finds that it is no longer the folder's."""
    try:
        with contextlib.suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    """As it signed; it may be about to."""
    try:
        signed = json.loads(os.pread(descriptor, 4096, 0))
        since = time.localtime(float(signed["since"]))
        started = time.strftime("%H:%M" if since[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M", since)
        return f"{signed['command']} (pid {int(signed['pid'])}) is working here since {started}"
    except (ValueError, LookupError, TypeError, OverflowError):
        return "another soup is working here"


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            where = folder / LOCK_NAME
            raise SoupError(f"{where}: is a link or a folder, expected a file of soup's own. Remove it.") from error
        advice = "Free some space" if error.errno in DISK_FULL else "Check its permissions"
        raise SoupError(f"{folder}: cannot be written: {error.strerror}. {advice} or choose another folder.") from error
