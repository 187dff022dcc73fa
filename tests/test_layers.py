"""Imports go one way, and up to methods they need torch alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import check_layers
import pytest

ROOT = Path(__file__).parent.parent

# Put in front of what a subprocess runs: these names can't be found any more.
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
            raise ModuleNotFoundError(f'{name} is blocked', name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-c', BLOCKED + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def modules_of_the_torch_part() -> list[str]:
    """Every module up to methods, so that a subpackage nobody imports is tried as well."""
    names = ['densekd']
    for layer in ('errors', 'registry', 'core', 'methods'):
        single = ROOT / 'densekd' / f'{layer}.py'
        paths = [single] if single.exists() else sorted((ROOT / 'densekd' / layer).rglob('*.py'))
        for path in paths:
            parts = path.relative_to(ROOT).with_suffix('').parts
            names.append('.'.join(parts).removesuffix('.__init__'))
    return names


def test_everything_up_to_methods_imports_without_openmmlab():
    names = modules_of_the_torch_part()
    assert len(names) > 3
    done = run_blocked('\n'.join(f'import {name}' for name in names))
    assert done.returncode == 0, done.stderr


def test_networks_and_heads_of_classifiers_do_too():
    code = """
import sys
import torch
from densekd.classification.heads import GlobalPool, LinearHead
from densekd.classification.networks import CifarResNet
logits = LinearHead(10, 64)(GlobalPool()(CifarResNet(8)(torch.zeros(1, 3, 32, 32))[-1]))
assert logits.shape == (1, 10)
"""
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('code', ['import mmengine', 'from mmdet.models import build_detector'])
def test_the_blocker_blocks(code):
    done = run_blocked(code)
    assert done.returncode != 0
    assert 'is blocked' in done.stderr


def test_the_package_keeps_its_layers():
    assert check_layers.check(ROOT / 'densekd') == []


def complaints(tmp_path: Path, file: str, code: str) -> list[str]:
    path = tmp_path / 'densekd' / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return check_layers.check(tmp_path / 'densekd')


WRONG = [
    ('errors.py', 'import densekd.core', 'errors imports densekd.core, but it may import only'),
    ('core/taps.py', 'from densekd.methods import build', 'core imports densekd.methods'),
    ('core/taps.py', 'from densekd import engine', 'core imports densekd.engine'),
    ('core/taps.py', 'from ..wrappers import model', 'core imports densekd.wrappers'),
    ('core/taps.py', 'def f():\n    import densekd.engine', 'core imports densekd.engine'),
    ('wrappers/a.py', 'import densekd.classification', 'wrappers imports densekd.classification'),
    ('datasets/digits.py', 'import densekd.core', 'it may import only: errors.'),
    ('engine/a.py', 'import densekd.cli.main', 'engine imports densekd.cli.main'),
    ('core/a.py', 'def f():\n    import mmengine', 'core imports mmengine; only classification'),
    ('core/a.py', 'def f():\n    import_module("mmcv.ops")', 'core imports mmcv.ops; only'),
    ('core/a.py', 'import numpy', 'core imports numpy at the top; up to methods it is torch alone'),
    ('wrappers/a.py', 'from mmdet.models import X', 'mmdet.models is imported at the top'),
    ('wrappers/a.py', 'class A:\n    import mmseg', 'mmseg is imported at the top'),
    (
        'registry.py',
        'from densekd.engine.registry import MODELS',
        'registry imports densekd.engine',
    ),
    (
        'classification/networks/a.py',
        'import mmengine',
        'classification.networks imports mmengine at the top; it is torch alone',
    ),
    ('classification/heads.py', 'import numpy', 'classification.heads imports numpy at the top'),
    ('helpers/a.py', '', 'helpers is no layer. It has: errors, registry, core'),
]


@pytest.mark.parametrize(('file', 'code', 'sentence'), WRONG)
def test_a_wrong_import_gets_a_sentence_with_its_place(tmp_path, file, code, sentence):
    found = complaints(tmp_path, file, code)
    assert len(found) == 1
    assert found[0].startswith(f'densekd/{file}:')
    assert sentence in found[0]


RIGHT = [
    ('core/taps.py', 'import torch\nfrom torch import nn\nfrom densekd.errors import TapError'),
    ('core/a.py', 'def f():\n    import numpy'),
    ('core/a.py', 'from . import b\nfrom .b import c\nfrom ..errors import TapError'),
    ('methods/feature/a.py', 'from densekd.core.head import DistillLoss\nimport densekd'),
    ('wrappers/a.py', 'from mmengine.model import BaseModel\ndef f():\n    import mmdet'),
    ('registry.py', 'def __getattr__(name):\n    from densekd.engine import registry'),
    ('classification/networks/a.py', 'import torch\ndef f():\n    from mmdet.models import X'),
    ('classification/metric.py', 'import mmengine'),
    ('cli/a.py', 'from densekd import engine, datasets, classification'),
    ('__main__.py', 'from densekd.cli.main import main'),
    ('__init__.py', '__version__ = 1'),
]


@pytest.mark.parametrize(('file', 'code'), RIGHT)
def test_a_right_import_gets_none(tmp_path, file, code):
    assert complaints(tmp_path, file, code) == []


def test_the_command_fails_on_a_violation_and_names_the_line(tmp_path, capsys):
    complaints(tmp_path, 'errors.py', '\n\nimport mmcv')
    assert check_layers.main([str(tmp_path / 'densekd')]) == 1
    assert capsys.readouterr().out.startswith('densekd/errors.py:3: errors imports mmcv')
