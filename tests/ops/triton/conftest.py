from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run: on the GPU if there is one, else in Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"
