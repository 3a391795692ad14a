"""setup.py as it goes on macOS, with Apple's tools and the compiler replaced by scripts that note their arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .build import ROOT

#: Writes its arguments into a file, makes what ``-o`` names, and for Swift the library.
_TOOL = """#!{python}
import json, os, pathlib, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({log!r}, "a") as log:
    print(json.dumps([name, *arguments]), file=log)
if "-o" in arguments:
    pathlib.Path(arguments[arguments.index("-o") + 1]).write_bytes(b"made")
if name == "swift":
    folder = pathlib.Path(arguments[arguments.index("--scratch-path") + 1], "release")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "libMetalRuntime.dylib").write_bytes(b"swift")
    print(folder)
"""

_BUILD = """
import runpy, sys
import setuptools, setuptools.command.build_ext, pybind11.setup_helpers
sys.platform = "darwin"
sys.argv = ["setup.py", "build_ext", "--build-lib", sys.argv[1], "--build-temp", sys.argv[2], "--force"]
runpy.run_path("setup.py", run_name="__main__")
"""


def _build(
    folder: Path, *tools: str, own_compiler: bool = True
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    log = folder / "log"
    log.touch()
    path = folder / "bin"
    path.mkdir()
    for tool in ("compile", *tools):
        (path / tool).write_text(_TOOL.format(python=sys.executable, log=str(log)))
        (path / tool).chmod(0o755)
    compiler = str(path / "compile")
    environment = {"PATH": str(path)}
    if own_compiler:
        environment |= dict.fromkeys(("CC", "CXX", "LDSHARED", "LDCXXSHARED"), compiler)
    command = [sys.executable, "-c", _BUILD, str(folder / "lib"), str(folder / "temp")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return result, [json.loads(line) for line in log.read_text().splitlines()]


def test_with_apples_tools_both_libraries_come_to_lie_side_by_side(tmp_path: Path) -> None:
    result, calls = _build(tmp_path, "xcode-select", "xcrun", "swift")
    assert result.returncode == 0, result.stderr
    package = tmp_path / "lib/mps_flash_attn"
    assert (package / "libMetalRuntime.dylib").read_bytes() == b"swift"
    (extension,) = package.glob("_metal*.so")
    assert extension.read_bytes() == b"made"
    (swift,) = (call for call in calls if call[0] == "swift" and "--product" in call)
    assert swift[1:6] == ["build", "-c", "release", "--package-path", "swift"]
    (compiled,) = (call for call in calls if "csrc/metal/torch_mps.mm" in call)
    assert f"-I{Path(torch.__file__).parent / 'include'}" in compiled
    (linked,) = (call for call in calls if str(extension) in call)
    assert {"-lMetalRuntime", "-ltorch_python", "-ltorch_cpu", "-lc10", f"-L{package}"} <= set(linked)
    assert "-Wl,-rpath,@loader_path" in linked


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (("xcrun", "swift"), "Apple's Command Line Tools are missing; xcode-select --install brings them"),
        (("xcode-select", "swift"), "xcrun is missing; xcode-select --install brings it"),
    ],
)
def test_without_apples_tools_the_install_goes_on_and_says_what_is_missing(
    tools: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    result, calls = _build(tmp_path, *tools)
    assert result.returncode == 0, result.stderr
    assert words in result.stdout + result.stderr
    assert not {"xcrun", "swift"} & {call[0] for call in calls}
    assert not list((tmp_path / "lib/mps_flash_attn").glob("_metal*"))
    assert list((tmp_path / "lib/mps_flash_attn").glob("_C*"))


def test_without_apples_tools_no_program_is_called_that_would_ask_for_them(tmp_path: Path) -> None:
    result, calls = _build(tmp_path, "xcrun", "swift", "clang", "gcc", "c++", own_compiler=False)
    assert result.returncode == 0, result.stderr
    # Python itself asks one that it was built with for its version, where that was GCC: on a Mac it was clang.
    assert [call for call in calls if call != ["gcc", "--version"]] == []
    assert not list((tmp_path / "lib").glob("**/*.so"))
