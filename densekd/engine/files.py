"""Files of weights and logits that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from densekd.engine.runner import put_in_place
from densekd.errors import DataError


def refuse_existing(target: Path, instead: str) -> None:
    """Refuses to write over a file.

    Raises:
        DataError: If it is there already, with what to do instead.
    """
    if target.exists():
        raise DataError(f'{target}: the file is there already. {instead}')


def save_whole(content: Any, target: Path) -> None:
    """Writes a file aside, onto the disk, and only then under its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f'.{target.name}.partial')
    torch.save(content, aside)
    put_in_place(aside, target)
