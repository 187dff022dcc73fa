"""Two processes on CPUs train one student, as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Packages are about that install a folder named tests, which would be found before this one.
LAUNCHER = f"""
import sys, types
from pathlib import Path
sys.modules['tests'] = types.ModuleType('tests')
sys.modules['tests'].__path__ = [{str(ROOT / 'tests')!r}]
from tests.helpers.distributed import main
main(Path(sys.argv[1]))
"""


@pytest.fixture(scope='module')
def found(digits: Path) -> list[dict[str, Any]]:
    """What each process found; see tests/helpers/distributed.py."""
    root = digits.parent
    (root / 'launcher.py').write_text(LAUNCHER)
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2']
    command += ['--master_port', '0', '--rdzv_backend', 'c10d', '--rdzv_endpoint', 'localhost:0']
    result = subprocess.run(
        [*command, str(root / 'launcher.py'), str(root)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return [json.loads((root / f'found{rank}.json').read_text()) for rank in (0, 1)]


@pytest.mark.parametrize('name', ['stopping', 'empty', 'two-stage'])
def test_every_parameter_gets_its_gradient_on_both(found: list[dict[str, Any]], name: str) -> None:
    # Without find_unused_parameters, the second step fails if one is left out of the first.
    for one in found:
        run = one[name]
        assert run['wrapped'] == 'MMDistributedDataParallel'
        assert run['unused'] is False and run['broadcasts'] is False
        assert run['alike'] and run['finite']
        assert 'epoch_1.pth' in run['files'] and not [f for f in run['files'] if 'partial' in f]


def test_two_halves_teach_what_the_whole_does(found: list[dict[str, Any]]) -> None:
    for one in found:
        compared = one['gradients']
        assert compared['mean'] == pytest.approx(compared['expected'], rel=1e-4)
        assert all(value > 0 for value in compared['expected'])
        assert compared['far'] == []
