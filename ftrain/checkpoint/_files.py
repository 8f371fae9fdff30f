"""All file operations of this package, in one class, so that a test can make each of them fail.

A test replaces `system` by an instance of a subclass of `Files` whose `call` raises, counts or records.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Files", "replaced", "system"]


class Files:
    """File operations of the operating system; each exception names the path of the file."""

    def call(self, operation: str, path: str, function: Callable[..., Any], *args: Any) -> Any:
        """Run one file operation; all other methods call this one."""
        try:
            return function(*args)
        except OSError as error:
            if error.filename is None:
                error.filename = path
            raise

    # writing

    def make_directory(self, path: str) -> None:
        self.call("mkdir", path, os.mkdir, path)

    def create(self, path: str) -> int:
        """Create a file and open it for writing; raise if it exists."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return int(self.call("open", path, os.open, path, flags, 0o666))

    def write(self, descriptor: int, data: memoryview, path: str) -> None:
        """Write all of `data`, in as many system calls as needed."""
        while data:
            written = self.call("write", path, os.write, descriptor, data)
            if written <= 0:
                raise OSError(errno.EIO, "the operating system wrote no bytes", path)
            data = data[written:]

    def sync(self, descriptor: int, path: str) -> None:
        self.call("fsync", path, os.fsync, descriptor)

    def sync_directory(self, path: str) -> None:
        """Sync a directory, unless its file system refuses that, as some network file systems do."""
        descriptor = self.open_directory(path)
        try:
            self.call("fsync directory", path, os.fsync, descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise
        finally:
            self.close(descriptor, path)

    def rename(self, source: str, target: str) -> None:
        self.call("rename", target, os.rename, source, target)

    def unlink(self, path: str) -> None:
        self.call("unlink", path, os.unlink, path)

    def remove_directory(self, path: str) -> None:
        self.call("rmdir", path, os.rmdir, path)

    def close(self, descriptor: int, path: str) -> None:
        self.call("close", path, os.close, descriptor)

    # reading

    def list(self, path: str) -> list[str]:
        return sorted(self.call("list", path, os.listdir, path))

    def open_directory(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return int(self.call("open directory", path, os.open, path, flags))

    def open_regular(self, name: str, path: str, directory: int | None = None) -> int:
        """Open a regular file for reading, in `directory` if one is given; refuse links and devices."""
        # O_NONBLOCK, because opening a pipe would wait for its other end.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = int(self.call("open", path, lambda: os.open(name, flags, dir_fd=directory)))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ELOOP, "not a regular file", path)
        return descriptor

    def size(self, descriptor: int, path: str) -> int:
        return int(self.call("stat", path, os.fstat, descriptor).st_size)

    def allocated(self, descriptor: int, path: str) -> int:
        """Return the number of bytes of a file on disk, less than its size if the file is sparse."""
        return 512 * int(self.call("stat", path, os.fstat, descriptor).st_blocks)

    def seek(self, descriptor: int, position: int, path: str) -> None:
        self.call("seek", path, os.lseek, descriptor, position, os.SEEK_SET)

    def read_into(self, descriptor: int, buffer: memoryview, path: str) -> int:
        """Read until a buffer is full or the file ends; return the number of bytes read."""
        done = 0
        while done < len(buffer):
            count = self.call("read", path, os.readv, descriptor, [buffer[done:]])
            if count == 0:
                break
            done += count
        return done

    def modified(self, path: str) -> float:
        return float(self.call("stat", path, os.stat, path).st_mtime)

    # locks

    def same(self, descriptor: int, path: str) -> bool:
        """Return True if a path still refers to the open file of a descriptor."""
        try:
            there = self.call("stat", path, os.stat, path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(self.call("stat", path, os.fstat, descriptor), there)

    def lock(self, descriptor: int, path: str) -> bool:
        """Try to lock an open file exclusively; return True if locked. Closing the file unlocks it."""
        try:
            self.call("lock", path, fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def open_lock(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return int(self.call("open", path, os.open, path, flags, 0o666))


system = Files()


@contextlib.contextmanager
def replaced(files: Files) -> Iterator[None]:
    """Replace the file operations of this process by `files`, for tests."""
    global system  # noqa: PLW0603
    before, system = system, files
    try:
        yield
    finally:
        system = before
