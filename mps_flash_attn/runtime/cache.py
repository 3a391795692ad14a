"""Compiled kernels on disk, addressed by what they were made from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from .. import folders
from ..errors import CacheError

__all__ = ["Cache", "cache_folder", "content_key"]

_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder(runtime: str) -> Path:
    """The folder of a runtime's compiled kernels."""
    return folders.cache_path(runtime)


def content_key(*parts: str) -> str:
    """A hash that differs when any of the parts does."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class Cache:
    """Files that can be made again, shared by all processes of a user.

    Each file ends with a hash of what is before it, so that a truncated or damaged one is noticed and made anew.
    ELF libraries are loaded as they are: nothing reads what follows their last section.

    Args:
        folder: where the files are; created when first needed.
        max_bytes: once the files take more, those that were not used for longest are deleted.
    """

    IN_USE_SECONDS = 60.0
    """Files used more recently are not deleted: another process may be about to load them."""

    def __init__(self, folder: Path, *, max_bytes: int = 1 << 30) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def path(self, name: str, make: Callable[[], bytes]) -> Path:
        """Returns the path of the file ``name``, which ``make`` provides unless it is there already.

        Processes that want the same file at once make it once.

        Raises:
            CacheError: the folder cannot be used.
        """
        path = self.folder / name
        if self._contents(path) is None:
            with self._locked(name):
                if self._contents(path) is None:
                    made = make()
                    with self._usable():
                        self._store(path, made)
                        self._trim()
        with contextlib.suppress(OSError):  # a folder that may only be read still serves
            os.utime(path)
        return path

    def read(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Like ``path``, but returns what ``make`` made."""
        contents = self._contents(self.path(name, make))
        return make() if contents is None else contents

    def _contents(self, path: Path) -> bytes | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        contents, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        return contents if hashlib.sha256(contents).digest() == digest else None

    def _store(self, path: Path, contents: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(contents)
                file.write(hashlib.sha256(contents).digest())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _trim(self) -> None:
        now = time.time()
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    status = entry.stat()
                    files.append((status.st_mtime, status.st_size, entry.path))
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for used, size, path in sorted(files):
            if excess <= 0 or now - used < self.IN_USE_SECONDS:
                break
            Path(path).unlink(missing_ok=True)
            excess -= size

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with self._usable():
            locks = self.folder / "locks"
            locks.mkdir(parents=True, exist_ok=True)
            # A fixed number of lock files, so that they need no cleaning: two names seldom share one.
            lock = filelock.FileLock(locks / name[:2])
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheError(
                f"cannot keep compiled kernels in {self.folder}: {error}; set {folders.CACHE_VARIABLE} to a folder "
                "that can be written to"
            ) from error
