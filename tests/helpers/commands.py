"""Configs of tiny runs on tiny digit scenes, written as files for the command line."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from densekd.cli.main import main
from densekd.datasets import make_digits
from densekd.wrappers.build import build_network
from densekd.wrappers.config import load_config, plain
from tests.helpers.detectors import retinanet

DATA = Path(__file__).resolve().parents[2] / 'configs' / '_base_' / 'digits' / 'detection.py'
SIZE = 64


def make_workplace(root: Path) -> None:
    """Writes tiny digit scenes, and a teacher's weights, to share by tests that only read them."""
    sizes = dict(train=6, val=3, test=3, size=SIZE, max_digits=3, max_side=40)
    make_digits(root / 'digits', progress=False, **sizes)
    torch.save({'state_dict': network(8, 24).state_dict(), 'meta': {}}, root / 'teacher.pth')


def network(width: int = 4, channels: int = 16) -> torch.nn.Module:
    """Returns a network with weights that are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_network(retinanet(width, channels, 10), 'mmdet', 'network')


def tiny_config(data: Path, distilled: bool = True) -> dict[str, Any]:
    """Returns the config of a run of an epoch with three iterations, as plain dicts.

    Args:
        data: What `make_workplace` wrote to.
        distilled: Whether a teacher of twice the width stands beside the student.
    """
    cfg = plain(copy.deepcopy(load_config(DATA))._cfg_dict.to_dict())
    for key in ('data_root', 'train_pipeline', 'test_pipeline', 'metainfo', 'classes'):
        cfg.pop(key, None)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader['batch_size'] = 2
        loader['dataset']['data_root'] = f'{data}/digits/'
        for step in loader['dataset']['pipeline']:
            if step['type'] == 'Resize':
                step['scale'] = (SIZE, SIZE)
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator']['ann_file'] = f'{data}/digits/annotations/instances_{split}.json'
    cfg['train_cfg'] = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    cfg['param_scheduler'] = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3)]
    cfg['optim_wrapper'] = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3))
    cfg['model'] = retinanet(4, 16, 10)
    if distilled:
        cfg['model'] = dict(
            type='densekd.DistillDetector',
            student=cfg['model'],
            teacher=dict(model=retinanet(8, 24, 10), checkpoint=f'{data}/teacher.pth'),
            distillers=[hint('neck.p3')],
        )
    return cfg


def hint(student: Any, teacher: Any = None, **head: Any) -> dict[str, Any]:
    """Returns a distiller whose connector brings the channels together."""
    head = {
        'type': 'DistillationHead',
        'loss': dict(type='FitNetLoss'),
        'stu_connector': dict(type='ConvConnector'),
        **head,
    }
    return dict(student_module=student, teacher_module=teacher or student, head=head)


def write_config(cfg: dict[str, Any], path: Path) -> Path:
    """Writes a config as a file of Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Config(copy.deepcopy(cfg)).dump(str(path))
    return path


@dataclass
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


def command(*argv: Any) -> Answer:
    """Runs a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in argv])
    return Answer(code, out.getvalue(), err.getvalue())


@dataclass
class Snapshot:
    """The files in some folders, by their content."""

    folders: Sequence[Path]
    files: dict[Path, str] = field(init=False)

    def __post_init__(self) -> None:
        self.files = self.read()

    def read(self) -> dict[Path, str]:
        """Returns the hash of each file."""
        found = [p for folder in self.folders for p in folder.rglob('*') if p.is_file()]
        return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}

    def changes(self) -> list[str]:
        """Returns the files that came, went or changed."""
        now = self.read()
        return sorted(str(p) for p in {*now, *self.files} if now.get(p) != self.files.get(p))
