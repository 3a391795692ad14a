"""The command line: ``python -m mps_flash_attn``, also installed as ``mps-flash-attn``."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Sequence

from . import doctor, doctor_text, tune
from ._version import __version__
from .runtime import base
from .tune import text as tune_text

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

_TUNE = """\
Finds the fastest tiling of each kernel on this machine and stores it, so that later calls with such problems use it. A
tiling says how a kernel's work is cut up: rows of a block, simdgroups of a threadgroup, what is kept in registers and
what is staged in threadgroup memory. Results differ by rounding alone; every tiling's result is compared with a float64
reference before it may win. Tilings that cannot run here, such as those that need more threadgroup memory than there
is, are dropped and counted.

On a GPU tilings are ranked by time: the median of several batches of launches, after a first launch, the fastest ones
timed again in turns. On the simulator (--device cpu) they are ranked by what a model of an Apple GPU makes of the
counted work: the ranking is no measurement, and each tiling takes seconds to compile.
"""

_TUNE_EPILOG = f"""\
What was found is kept in {tune.path().name} in the cache folder, for this device and this version of the package. Calls
use it from then on, in this and other processes; {tune.VARIABLE}=0 in the environment makes them ignore it.

exit code:
  0  everything was tuned, and right     1  some kernel had no right result     2  nothing was tuned
  130  interrupted by ctrl-C; what was tuned until then is stored

examples:
  mps-flash-attn tune --list                                   what there is to tune
  mps-flash-attn tune                                          everything, on the GPU where there is one
  mps-flash-attn tune --only D64-causal-long --dtype float16   attention as a GPT with heads of size 64 has it
  mps-flash-attn tune --limit 12 --dry-run                     twelve tilings of each that can run, nothing stored
  mps-flash-attn tune --clear                                  back to the defaults
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
        help="only this device: mps is an Apple GPU, cuda an NVIDIA GPU, cpu the simulator; may be given several times",
    )
    examine.set_defaults(run=_run_doctor)
    tuner = commands.add_parser(
        "tune",
        help="find the fastest tilings on this machine and use them from now on",
        description=_TUNE,
        epilog=_TUNE_EPILOG,
        formatter_class=as_written,
    )
    tuner.add_argument("--op", action="append", metavar="NAME", help="only this operation; may be given several times")
    tuner.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="only kernels and classes of problems whose name contains this; may be given several times",
    )
    tuner.add_argument("--dtype", action="append", metavar="NAME", help="only this dtype, such as float16; as above")
    tuner.add_argument(
        "--device", choices=tuple(base.RUNTIMES), help="type of the device; by default the GPU, else the simulator"
    )
    tuner.add_argument(
        "--limit", type=_positive, metavar="N", help="measure N tilings at most: the default and a sample"
    )
    tuner.add_argument("--dry-run", action="store_true", help="store nothing")
    tuner.add_argument("--list", action="store_true", help="print what would be tuned, and stop")
    tuner.add_argument("--clear", action="store_true", help="forget everything that was stored, and stop")
    tuner.add_argument("--json", action="store_true", help="print one JSON object with every trial instead of a table")
    tuner.set_defaults(run=_run_tune)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted is a number from 1")
    return int(text)


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


def _run_tune(args: argparse.Namespace) -> int:
    if args.clear:
        tune.clear()
        print(f"forgotten: {tune.path()}")
        return 0
    device = args.device or tune.best_device()
    if device is None:
        print(
            "NOTHING TUNED: no runtime can be used on this machine; `mps-flash-attn doctor` says why.", file=sys.stderr
        )
        return 2
    offered = tune.subjects(base.for_device(device).CAPABILITIES, device)
    chosen = [subject for operation, subject in offered if _wanted(args, operation, subject)]
    if not chosen:
        print("NOTHING TUNED: no kernel is left by --op, --only and --dtype; see --list.", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{subject.name}   ({subject.problem})" for subject in chosen))
        return 0

    tell = functools.partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    tell(tune_text.header(tune.device_name(device), len(chosen), None if args.dry_run else tune.path()))
    results: list[tune.Result] = []
    with contextlib.suppress(KeyboardInterrupt), tune_text.Progress(chosen, args.limit) as progress:
        results += tune.run(chosen, device, limit=args.limit, store=not args.dry_run, tried=progress.tried)
    if args.json:
        print(json.dumps({"results": [result.as_json() for result in results]}, indent=2, allow_nan=False))
    elif results:
        print(tune_text.table(results))
    if len(results) < len(chosen):
        print(f"INTERRUPTED: {len(results)} of {len(chosen)} were tuned.", file=sys.stderr)
        return 130
    return 0 if all(result.best is not None for result in results) else 1


def _wanted(args: argparse.Namespace, operation: str, subject: tune.Subject) -> bool:
    """Whether the command line asks for this one."""
    return (
        (args.op is None or operation in args.op)
        and (args.dtype is None or subject.dtype_name in args.dtype)
        and (args.only is None or any(text in subject.name for text in args.only))
    )
