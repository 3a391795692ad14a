"""The ladder: ten products ``C = A B``, from the definition to the matrix units, one idea a rung. For learning.

The kernels are those of this folder; ``README.md`` one folder up explains each idea and predicts its gain. `launch`
plans a rung, `multiply` runs it. All matrices are contiguous, of any size; rung 10 is close to what `matmul` runs.
"""

from __future__ import annotations

from .plan import RUNGS, Rung, Tiling, launch, tilings
from .run import multiply

__all__ = ["RUNGS", "Rung", "Tiling", "launch", "multiply", "tilings"]
