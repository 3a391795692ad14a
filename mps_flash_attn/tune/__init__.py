"""Autotuning: finds the fastest tiling of each kernel on this machine, and remembers it for later calls.

A kernel's plan takes a `Tiling`, a frozen dataclass of integers and booleans. ``ops/<op>/tuning.py`` yields `Subject`
values: a kernel, a class of problems, and the tilings to try. `run` tries them and stores the best in a file under the
user's cache folder; ``ops/<op>/function.py`` asks `planned` when it prepares a call. ``mps-flash-attn tune`` is the
command line of it.

On a GPU tilings are ranked by time. On the simulator they are ranked by what a model makes of the counted work
(``runtime/simulator/cost.py``), which is no time.
"""

from __future__ import annotations

from .store import VARIABLE, Choice, Key, chosen, clear, device_name, path, planned, put, read
from .tuner import Outcome, Result, Subject, Trial, best_device, candidates, run, search, subjects

__all__ = [
    "VARIABLE",
    "Choice",
    "Key",
    "Outcome",
    "Result",
    "Subject",
    "Trial",
    "best_device",
    "candidates",
    "chosen",
    "clear",
    "device_name",
    "path",
    "planned",
    "put",
    "read",
    "run",
    "search",
    "subjects",
]
