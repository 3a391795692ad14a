"""The wheels that publish Apple's declarations of Metal, downloaded once and unpacked outside the tree."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from tests.apple.build import cache_folder

__all__ = ["unpacked"]

_LISTED = Path(__file__).with_name("wheels.txt")
#: What the wheels are for: another machine than this one, so only their files are of use.
_TARGET = ("--platform=macosx_14_0_arm64", "--platform=macosx_10_13_universal2", "--python-version=3.12")
_WANTED = (".hpp", ".py", ".so")


@functools.cache
def unpacked() -> Path:
    """A folder with the contents of all wheels.

    Raises:
        RuntimeError: they could not be downloaded, or are not what they were when they were listed.
    """
    folder = cache_folder() / f"metadata-{hashlib.sha256(_LISTED.read_bytes()).hexdigest()[:24]}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as place:
                _download(Path(place))
                made = Path(place) / "unpacked"
                for wheel in Path(place).glob("*.whl"):
                    with zipfile.ZipFile(wheel) as archive:
                        archive.extractall(made, [name for name in archive.namelist() if name.endswith(_WANTED)])
                made.rename(folder)
    return folder


def _download(folder: Path) -> None:
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes")
    command = [sys.executable, "-m", "pip", "download", *options, *_TARGET, f"--requirement={_LISTED}"]
    result = subprocess.run([*command, f"--dest={folder}"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"the wheels of {_LISTED.name} cannot be downloaded from PyPI:\n{result.stderr}")
