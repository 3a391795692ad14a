"""Runs every kernel under the tools of NVIDIA's compute-sanitizer, and shows that each of them can fail.

``python -m tests.sanitizer`` on a machine with an NVIDIA GPU; exits with 1 if a tool finds something in a kernel, or
nothing in a kernel with a planted fault.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from .launches import FAULTS

# Overruns are seen where nothing lies behind a tensor: tensors are allocated one by one, with room between them.
_ENVIRONMENT = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_TOOLS = {
    "memcheck": ("--padding", "16384"),
    "racecheck": ("--racecheck-report", "all"),
    "initcheck": (),
    "synccheck": (),
}
_FOUND = 86


def _watch(tool: str, *arguments: str) -> tuple[bool, str]:
    """Whether a tool finds something in our kernels, and its words."""
    # Calls of the driver that fail are not reported: NVIDIA's own Python bindings probe for functions that it lacks.
    command = ["compute-sanitizer", "--tool", tool, *_TOOLS[tool], "--report-api-errors", "no"]
    command += ["--error-exitcode", str(_FOUND)]
    command += [
        "--kernel-name",
        "kernel_substring=metal_",
        sys.executable,
        "-m",
        "tests.sanitizer.launches",
        *arguments,
    ]
    result = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, check=False)
    if result.returncode not in (0, _FOUND):
        raise SystemExit(f"{' '.join(command)} exited with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.returncode == _FOUND, result.stdout


def main() -> int:
    """Prints a line for each run; returns the exit code."""
    if shutil.which("compute-sanitizer") is None:
        raise SystemExit("compute-sanitizer is not in PATH; it comes with NVIDIA's CUDA toolkit")
    failures = 0
    runs = [(tool, (), False) for tool in _TOOLS] + [(tool, (name,), True) for name, (tool, _) in FAULTS.items()]
    for tool, arguments, is_planted in runs:
        start = time.monotonic()
        found, words = _watch(tool, *arguments)
        right = found == is_planted
        failures += not right
        what = (
            f"{tool:9} {' '.join(arguments) or 'every kernel':20} {'found something' if found else 'found nothing':15}"
        )
        print(f"{'ok  ' if right else 'FAIL'} {what} {time.monotonic() - start:5.1f} s", flush=True)
        if not right:
            print(words[-6000:])
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
