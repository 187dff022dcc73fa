"""Whole runs of classifiers: resumed to the bit, at weight 0, what they leave and report."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.hooks import VALIDATED
from densekd.engine.preflight import check_before_training
from densekd.engine.run import evaluate, student_config, train
from densekd.engine.runner import latest_checkpoint
from densekd.errors import ConfigError, DataError
from densekd.wrappers.build import build_network
from tests.engine.test_resume import go
from tests.helpers.classifier_runs import labels_config
from tests.helpers.detectors import entry
from tests.helpers.runs import differences

# With states of their own: running statistics, margins, connectors, a schedule.
DISTILLERS = [
    entry('backbone.c4.pre_relu', 'OFD', 1e-4),
    entry('backbone.c3', 'FitNet', schedule=dict(warmup=6)),
    entry('logits', 'KD'),
]


def test_killed_and_resumed_equals_uninterrupted(digits: Path, tmp_path: Path) -> None:
    """With processes that load, augmented and mixed images, in the middle of an epoch."""

    def config(name: str) -> Config:
        mixing = dict(mixup=0.5, cutmix=1.0, num_classes=10)
        each = dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=2)
        return labels_config(
            digits,
            tmp_path / name,
            DISTILLERS,
            workers=2,
            preprocessor=mixing,
            default_hooks=dict(checkpoint=each),
        )

    go(config('whole'))
    last = latest_checkpoint(tmp_path / 'whole')
    assert last is not None
    total = int(last.stem.removeprefix('iter_'))
    assert total % 2 == 0 and total >= 6
    go(config('killed'), kill_at=total // 2 + 1)
    assert latest_checkpoint(tmp_path / 'killed').name == f'iter_{total // 2 + 1}.pth'
    go(config('killed'), resume=True)
    assert differences(last, tmp_path / 'killed' / last.name) == []
    scores = [json.loads((tmp_path / n / 'scores.json').read_text()) for n in ('whole', 'killed')]
    assert scores[0] == scores[1]
    assert [e['epoch'] for e in scores[0]['all']] == [1, 2]


def test_weight_0_is_plain_training(digits: Path, tmp_path: Path) -> None:
    for name, distillers in {
        'plain': None,
        'zero': [entry('backbone.c4.pre_relu', 'OFD', 0.0), entry('logits', 'KD', 0.0)],
        'one': [entry('backbone.c4.pre_relu', 'OFD', 1e-4), entry('logits', 'KD', 1.0)],
    }.items():
        go(labels_config(digits, tmp_path / name, distillers))
    plain, zero, one = (
        read_checkpoint(tmp_path / name / 'epoch_2.pth')['state_dict']
        for name in ('plain', 'zero', 'one')
    )
    assert list(plain) == list(zero)
    assert [k for k in plain if not torch.equal(plain[k], zero[k])] == []
    assert [k for k in plain if not torch.equal(plain[k], one[k])]


@pytest.fixture(scope='module')
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a finished run."""
    config = labels_config(digits, tmp_path_factory.mktemp('run') / 'run', DISTILLERS, epochs=3)
    go(config)
    return config


def test_the_file_is_the_student(finished: Config) -> None:
    saved = read_checkpoint(Path(finished.work_dir) / 'epoch_3.pth')
    student = build_network(student_config(finished).model, 'mmengine', 'student')
    assert list(saved['state_dict']) == list(student.state_dict())
    assert student.load_state_dict(saved['state_dict'], strict=True)
    assert saved['densekd']['terms'] == [
        'backbone_ofd_c4_pre_relu', 'backbone_fitnet_c3', 'head_kd_logits',
    ]  # fmt: skip
    assert len(saved['meta']['dataset_meta']['classes']) == 10


def test_best_and_last_are_reported_and_are_what_testing_finds(finished: Config) -> None:
    scores = json.loads((Path(finished.work_dir) / 'scores.json').read_text())
    assert [e['epoch'] for e in scores['all']] == [1, 2, 3]
    assert scores['last'] == scores['all'][-1]
    key = 'accuracy/top1'
    assert scores['best'][key] == max(e[key] for e in scores['all'])
    best = next(Path(finished.work_dir).glob('best_*.pth'))
    for path, entry_ in ((Path(finished.work_dir) / 'epoch_3.pth', scores['last']),
                         (best, scores['best'])):  # fmt: skip
        found = evaluate(finished, path)
        assert found[key] == pytest.approx(entry_[key])
        assert found['accuracy/top5'] == pytest.approx(entry_['accuracy/top5'])


def test_a_new_run_begins_its_scores_anew(digits: Path, tmp_path: Path) -> None:
    (tmp_path / 'run').mkdir()
    stale = dict(all=[{'iteration': 0, 'epoch': 9, 'accuracy/top1': 100.0}])
    (tmp_path / 'run' / 'scores.json').write_text(json.dumps(stale))
    go(labels_config(digits, tmp_path / 'run', epochs=1))
    scores = json.loads((tmp_path / 'run' / 'scores.json').read_text())
    assert [e['epoch'] for e in scores['all']] == [1] and scores['best'] == scores['last']


def copied(digits: Path, folder: Path) -> Path:
    import shutil

    shutil.copytree(digits / 'crops', folder / 'crops')
    return folder


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_only_training_meets_is_a_sentence(
    workers: int, digits: Path, tmp_path: Path
) -> None:
    data = copied(digits, tmp_path / 'data')
    path = next((data / 'crops/train/seven').iterdir())
    path.write_bytes(path.read_bytes()[:30])
    cfg = labels_config(data, tmp_path / 'run', workers=workers)
    with pytest.raises(DataError, match='seven/.*png: the image can.t be read') as caught:
        train(cfg, preflight=False)
    assert '\n' not in str(caught.value)


def test_a_wrong_fraction_is_refused_before_the_first_step(digits: Path, tmp_path: Path) -> None:
    cfg: Any = labels_config(digits, tmp_path / 'run', fraction=0.01)
    with pytest.raises(DataError, match=r'train_dataloader: .* leaves no image of class'):
        check_before_training(cfg)
    assert not (tmp_path / 'run').exists()


PLAIN_MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    'a network that is not there': (
        {'model.backbone.type': 'densekd.CifarResNt'},
        "there is no model 'CifarResNt'. Did you mean 'CifarResNet'",
    ),
    'a network without its scope': (
        {'model.backbone.type': 'CifarResNet'},
        "there is no model 'CifarResNet'. Did you mean 'densekd.CifarResNet'",
    ),
    'an argument of the head': ({'model.head.num_class': 3}, "'num_class'"),
    'mixing for another number of classes': (
        {'model.data_preprocessor': dict(mixup=1.0, num_classes=5)},
        'its num_classes=5 are the classes whose images it mixes, and the head has 10',
    ),
    'a step of the pipeline': (
        {'train_dataloader.dataset.pipeline': [dict(type='densekd.LodImage')]},
        "there is no transform 'densekd.LodImage'. Did you mean 'densekd.LoadImage'",
    ),
    'a step without its scope': (
        {'train_dataloader.dataset.pipeline': [dict(type='PackImage')]},
        "there is no transform 'PackImage'. Did you mean 'densekd.PackImage'",
    ),
    'a data set': (
        {'train_dataloader.dataset.type': 'densekd.ImageFoldr'},
        "there is no dataset 'densekd.ImageFoldr'. Did you mean 'densekd.ImageFolder'",
    ),
    'an accuracy that is none': (
        {'val_evaluator': dict(type='densekd.Accuracy', topk=1)},
        'topk is a list of',
    ),
    'the best of what is not computed': (
        {'val_evaluator': dict(type='densekd.Accuracy', topk=(2,))},
        "save_best: val_evaluator gives no 'accuracy/top1'. Did you mean 'accuracy/top2'",
    ),
}


@pytest.mark.parametrize('name', PLAIN_MISTAKES)
def test_a_plain_run_is_refused_before_a_file_is_written(
    name: str, digits: Path, tmp_path: Path
) -> None:
    options, sentence = PLAIN_MISTAKES[name]
    cfg = labels_config(digits, tmp_path / 'run')
    if 'val_evaluator' in options:
        cfg.val_evaluator = options['val_evaluator']
    else:
        cfg.merge_from_dict(options)
    with pytest.raises(ConfigError) as caught:
        train(cfg)
    assert sentence in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'run').exists()


def test_what_is_scored_is_checked_too(digits: Path, tmp_path: Path, finished: Config) -> None:
    checkpoint = Path(finished.work_dir) / 'epoch_3.pth'
    data = copied(digits, tmp_path / 'data')
    gone = copy.deepcopy(finished)
    gone.test_dataloader.dataset.data_root = str(data / 'crops')
    path = next((data / 'crops/val/seven').iterdir())
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match='test_dataloader: .*seven/.*image can.t be read'):
        evaluate(gone, checkpoint)
    path.parent.rename(path.parent.with_name('heptad'))
    with pytest.raises(DataError, match='test_dataloader: '):
        evaluate(gone, checkpoint)
    gone.test_dataloader.dataset.fractoin = 0.5
    with pytest.raises(ConfigError, match="'fractoin'. Did you mean 'fraction'"):
        evaluate(gone, checkpoint)


def test_what_a_run_notes_of_its_validations_is_not_logged() -> None:
    """As mmengine logs what is noted under a name that begins with that of a loop."""
    assert not VALIDATED.startswith(('train', 'val', 'test'))
