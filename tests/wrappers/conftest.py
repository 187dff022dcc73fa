"""What the wrappers' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    """Seeds torch for each test, and gives the caller's generator back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
