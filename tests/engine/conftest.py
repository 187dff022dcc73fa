"""What the engine's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.runs import make_tiny_digits


@pytest.fixture(autouse=True)
def unformatted_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes configs as they come: making them pretty takes most of the time of a short run."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))


@pytest.fixture(scope='module')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny digit scenes."""
    return make_tiny_digits(tmp_path_factory.mktemp('data'))
