"""Fixtures and the tolerance rule that all tests share."""

from __future__ import annotations

import os
import random

import hypothesis
import pytest
import torch

# A first example compiles kernels, so no deadline; hypothesis prints the example and how to run it again.
hypothesis.settings.register_profile("package", deadline=None, print_blob=True)
hypothesis.settings.load_profile("package")

#: Set it to the seed that a failure printed, to see that failure again.
SEED_VARIABLE = "MPS_FLASH_ATTN_TEST_SEED"


@pytest.fixture
def seed() -> int:
    """A fresh seed, given to PyTorch's generator too; pytest prints it with a failure."""
    value = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"{SEED_VARIABLE}={value}")
    torch.manual_seed(value)
    return value
