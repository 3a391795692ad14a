"""Builds the extension module; everything else is in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

SIMULATOR = Path("csrc/simulator")

setup(
    ext_modules=[
        Pybind11Extension(
            "mps_flash_attn._C",
            ["csrc/bindings.cpp", *sorted(map(str, SIMULATOR.glob("*.cpp")))],
            depends=[*map(str, SIMULATOR.glob("*.h")), "csrc/simulator/include/simt.h"],
            include_dirs=["csrc", "csrc/simulator/include"],
            cxx_std=17,
            extra_compile_args=["-O2", "-g0", "-Wall", "-Wextra"],
            # The simulator is for machines without an Apple GPU: a Mac can do without.
            optional=sys.platform == "darwin",
        )
    ]
)
