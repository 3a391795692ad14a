"""What every benchmark prints and stores: tables for people, JSON lines for programs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

__all__ = ["append", "environment", "show"]


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on beside the code: date, device, system and versions."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device.type,
        "processor": _processor(device),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def append(file: Path, records: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Adds one JSON object a line to ``file``, each with the environment it was measured in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    surroundings = environment(device)
    with file.open("a", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps({**record, **surroundings}) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def show(title: str, records: Sequence[Mapping[str, Any]], caption: str | None = None) -> None:
    """Prints records as a table, one column a key of the first record."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column, value in records[0].items():
        table.add_column(column.replace("_", " "), justify="left" if isinstance(value, str) else "right")
    for record in records:
        table.add_row(*(_cell(value) for value in record.values()))
    console = Console()
    # A file or a pipe has no width to fit into.
    Console(width=None if console.is_terminal else 160).print(table)
