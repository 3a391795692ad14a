"""The C preprocessor, run over Metal text."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ...errors import KernelCompileError
from .host_compiler import Compiler

__all__ = ["SOURCE_NAME", "preprocess"]

SOURCE_NAME = "kernel.metal"
"""What messages call a text that does not name itself with ``#line``."""

# Metal's own headers: all they declare is in the metal_stdlib of the runtime that a text is translated for.
_METAL_HEADERS = (
    "metal_array",
    "metal_assert",
    "metal_atomic",
    "metal_command_buffer",
    "metal_common",
    "metal_compute",
    "metal_config",
    "metal_extended_vector",
    "metal_geometric",
    "metal_graphics",
    "metal_integer",
    "metal_limits",
    "metal_logging",
    "metal_math",
    "metal_matrix",
    "metal_numeric",
    "metal_pack",
    "metal_packed_vector",
    "metal_quadgroup",
    "metal_relational",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_stdlib",
    "metal_texture",
    "metal_type_traits",
    "metal_types",
    "metal_uniform",
    "metal_utility",
    "metal_visible_function_table",
    "simd/simd.h",
)
_MACROS = {
    "__METAL__": "1",
    "__METAL_VERSION__": "310",
    "__METAL_MACOS__": "1",
    "__HAVE_BFLOAT__": "1",
    "__HAVE_SIMDGROUP_MATRIX__": "1",
    "__HAVE_SIMDGROUP_REDUCTION__": "1",
}


def preprocess(source: str, compiler: Compiler, macros: Iterable[tuple[str, str]]) -> str:
    """Expands macros and includes as a Metal compiler would, leaving ``#line`` directives.

    Metal's own headers are empty here. Other headers are looked for in PyTorch's wheel, as PyTorch does.

    Raises:
        KernelCompileError: with the preprocessor's own words.
    """
    torch = importlib.util.find_spec("torch")
    torch_folders = torch.submodule_search_locations if torch and torch.submodule_search_locations else ()
    with tempfile.TemporaryDirectory(prefix="mps-flash-attn-") as folder:
        for name in _METAL_HEADERS:
            header = Path(folder) / name
            header.parent.mkdir(exist_ok=True)
            header.touch()
        arguments = ["-E", "-x", "c++", "-std=c++17", "-nostdinc", "-undef", "-w", f"-I{folder}"]
        arguments += [f"-I{Path(path) / 'include'}" for path in torch_folders]
        arguments += [f"-D{name}={value}" for name, value in (*_MACROS.items(), *macros)]
        result = compiler.run([*arguments, "-"], text=f'#line 1 "{SOURCE_NAME}"\n{source}')
    if result.returncode != 0:
        raise KernelCompileError(f"the Metal text could not be preprocessed:\n{result.stderr.strip()}")
    return result.stdout
