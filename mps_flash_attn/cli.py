"""The command line: ``python -m mps_flash_attn``, also installed as ``mps-flash-attn``."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence

from . import doctor, doctor_text
from ._version import __version__
from .runtime import base

__all__ = ["main"]

_DESCRIPTION = "Attention for PyTorch on Apple GPUs in O(N) memory, forward and backward."

_EPILOG = """\
Use it from Python:

  import mps_flash_attn
  mps_flash_attn.patch()             PyTorch's attention runs on these kernels from here on
  print(mps_flash_attn.stats())      which calls were accelerated, which were not and why
"""

_DOCTOR = """\
Says what is on this machine, then runs every kernel here on small problems and compares it with a float64 reference:
on the GPU of a Mac, and in the simulator where there is a C++ compiler. A check passes when its error is at most twice
that of PyTorch's own attention in the same dtype, plus a small floor. Nothing is changed, but compiled kernels are kept
in the cache folder: the first run takes up to a minute, later ones a few seconds.
"""

_DOCTOR_EPILOG = """\
exit code:
  0  every check passed         1  a check failed         2  no runtime can be used, so nothing was checked

examples:
  python -m mps_flash_attn doctor                    everything that this machine can run
  python -m mps_flash_attn doctor --device mps       the Apple GPU alone
  python -m mps_flash_attn doctor --json > report    for programs, and to attach to a bug report
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        arguments: those after the program's name; ``sys.argv`` by default.
    """
    args = _parser().parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has enough, as in `doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python can flush at its exit
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="mps-flash-attn", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=as_written
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    examine = commands.add_parser(
        "doctor",
        help="check every kernel on this machine",
        description=_DOCTOR,
        epilog=_DOCTOR_EPILOG,
        formatter_class=as_written,
    )
    examine.add_argument("--json", action="store_true", help="print one JSON object, and nothing before it is complete")
    examine.add_argument(
        "--device",
        action="append",
        choices=tuple(base.RUNTIMES),
        help="only the runtimes of this device: mps is the Apple GPU, cpu the simulator; may be given several times",
    )
    examine.set_defaults(run=_run_doctor)
    return parser


def _run_doctor(args: argparse.Namespace) -> int:
    if args.json:
        report = doctor.examine(args.device)
        print(json.dumps(report.as_json(), indent=2, allow_nan=False))
        return int(report.verdict)

    tell = functools.partial(print, flush=True)
    report = doctor.examine(
        args.device,
        started=lambda report: tell(doctor_text.header(report)),
        checked=lambda result: tell(doctor_text.line(result)),
    )
    tell(f"\n{doctor_text.summary(report)}")
    return int(report.verdict)
