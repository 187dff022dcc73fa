"""A teacher's logits from a file: training as with the teacher, and only for fixed views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.preflight import check_before_training
from densekd.engine.run import prepare, train
from densekd.engine.stored_logits import write_logits
from densekd.errors import CheckpointError, ConfigError, DataError, DenseKDError
from densekd.wrappers.build import build_network
from tests.engine.test_resume import go
from tests.helpers.classifier_runs import images, labels_config
from tests.helpers.classifiers import classifier
from tests.helpers.detectors import entry

WIDE = classifier(classes=10, base_channels=6)
FIXED = [dict(type='densekd.LoadImage'), dict(type='densekd.PackImage')]


@pytest.fixture(scope='module')
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A teacher with a checkpoint, that has something to say."""
    network = build_network(WIDE, 'mmengine', 'teacher')
    with torch.no_grad():
        network.head.fc.weight.mul_(50)
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save({'state_dict': network.state_dict(), 'meta': {}}, path)
    return dict(model=WIDE, checkpoint=str(path))


def config(
    data: Path,
    work_dir: Path,
    teacher: Any,
    pipeline: Any = None,
    place: str = 'logits',
    **more: Any,
) -> Any:
    model = dict(
        type='densekd.DistillClassifier',
        student=classifier(classes=10, preprocessor=more.pop('preprocessor', None)),
        teacher=teacher,
        distillers=[entry(place, 'KD')],
    )
    cfg = labels_config(data, work_dir, model=dict(model, teacher=None), **more)
    cfg.train_dataloader.dataset = images(data, 'train', pipeline or FIXED)
    cfg.model.teacher = teacher
    return prepare(cfg, work_dir)


@pytest.fixture(scope='module')
def stored(digits: Path, teacher: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of that teacher."""
    folder = tmp_path_factory.mktemp('logits')
    views, classes = write_logits(config(digits, folder, teacher), folder / 'logits.pth')
    assert classes == 10
    assert 0 < views <= len(list((digits / 'crops/train').rglob('*.png')))
    return folder / 'logits.pth'


def test_training_is_that_with_the_teacher_beside(
    digits: Path, teacher: Any, stored: Path, tmp_path: Path
) -> None:
    states = []
    for name, source in {'beside': teacher, 'stored': dict(logits=str(stored))}.items():
        go(config(digits, tmp_path / name, source, epochs=1))
        states.append(read_checkpoint(tmp_path / name / 'epoch_1.pth'))
    beside, alone = (s['state_dict'] for s in states)
    for key, value in beside.items():
        torch.testing.assert_close(alone[key], value, rtol=1e-3, atol=1e-4)
    bias = 'head.fc.bias'
    assert not torch.equal(beside[bias], torch.zeros(10))
    manifest = states[1]['densekd']['teachers']['teacher']
    assert manifest['checkpoint'] == str(stored) and manifest['sha256']


def test_the_check_takes_it_and_says_what_is_compared(
    digits: Path, stored: Path, tmp_path: Path
) -> None:
    report = check_before_training(config(digits, tmp_path / 'run', dict(logits=str(stored))))
    assert report is not None
    (term,) = report.terms
    assert (term.student, term.teacher, term.shapes) == ('logits', 'logits', '10')
    assert term.value > 0 and term.gradient > 0


@pytest.mark.parametrize('step', ['PadCrop', 'Flip'])
def test_views_that_vary_are_refused(
    step: str, digits: Path, teacher: Any, stored: Path, tmp_path: Path
) -> None:
    varying = [FIXED[0], dict(type=f'densekd.{step}'), FIXED[1]]
    cfg = config(digits, tmp_path / 'run', dict(logits=str(stored)), varying)
    with pytest.raises(ConfigError, match=r'augmentation shows .*png in another view each time'):
        train(cfg)
    with pytest.raises(ConfigError, match='in another view each time'):
        write_logits(config(digits, tmp_path, teacher, varying), tmp_path / 'x.pth')
    assert not (tmp_path / 'x.pth').exists() and not list((tmp_path).rglob('epoch_*'))


def test_mixed_images_are_refused(digits: Path, stored: Path, tmp_path: Path) -> None:
    mixing = dict(mixup=0.2, num_classes=10)
    cfg = config(digits, tmp_path / 'run', dict(logits=str(stored)), preprocessor=mixing)
    with pytest.raises(ConfigError, match=r'data_preprocessor mixes images \(mixup\)'):
        check_before_training(cfg)


def test_other_images_are_refused_before_and_while_training(
    digits: Path, stored: Path, tmp_path: Path
) -> None:
    cut = [FIXED[0], dict(type='densekd.CenterCrop', size=24), FIXED[1]]
    cfg = config(digits, tmp_path / 'run', dict(logits=str(stored)), cut)
    with pytest.raises(DataError, match=r'logits.pth has no logits for .*png as training shows it'):
        check_before_training(cfg)
    with pytest.raises(DataError, match='has no logits for .*png'):
        train(cfg, preflight=False)


@pytest.mark.parametrize(
    ('more', 'place', 'sentence'),
    [
        (dict(model=WIDE), 'logits', 'Leave out model, or leave out logits'),
        (dict(precision='bf16'), 'logits', 'Leave out precision'),
        ({}, 'backbone.c4', "distillers.0..teacher_module: .*'?backbone.c4"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    more: Any, place: str, sentence: str, digits: Path, stored: Path, tmp_path: Path
) -> None:
    cfg = config(digits, tmp_path / 'run', {**more, 'logits': str(stored)}, place=place)
    with pytest.raises(DenseKDError, match=sentence) as caught:
        check_before_training(cfg)
    assert '\n' not in str(caught.value)


def test_a_network_to_differentiate_is_not_in_a_file(
    digits: Path, stored: Path, tmp_path: Path
) -> None:
    cfg = config(digits, tmp_path / 'run', dict(logits=str(stored)))
    cfg.model.distillers = [entry('logits', 'Jacobian')]
    with pytest.raises(ConfigError, match="differentiates the teacher 'teacher', of which there"):
        check_before_training(cfg)


def test_a_file_of_something_else(digits: Path, teacher: Any, stored: Path, tmp_path: Path) -> None:
    cfg = config(digits, tmp_path / 'run', dict(logits=teacher['checkpoint']))
    with pytest.raises(
        CheckpointError, match='it holds no logits. Make such a file: densekd logits'
    ):
        check_before_training(cfg)
    held = torch.load(stored)
    torch.save({**held, 'logits': held['logits'][:3]}, tmp_path / 'short.pth')
    cfg = config(digits, tmp_path / 'run', dict(logits=str(tmp_path / 'short.pth')))
    with pytest.raises(CheckpointError, match='it is damaged'):
        check_before_training(cfg)


def test_a_teacher_must_be_there_to_be_stored(
    digits: Path, teacher: Any, stored: Path, tmp_path: Path
) -> None:
    two = [dict(teacher, name='a'), dict(teacher, name='b')]
    with pytest.raises(ConfigError, match='say with --teacher which of these it is: a, b'):
        write_logits(config(digits, tmp_path, two), tmp_path / 'x.pth')
    assert write_logits(config(digits, tmp_path, two), tmp_path / 'x.pth', 'b')[1] == 10
    with pytest.raises(DataError, match='the file is there already'):
        write_logits(config(digits, tmp_path, two), tmp_path / 'x.pth', 'b')
    with pytest.raises(ConfigError, match='with a teacher that can run'):
        write_logits(config(digits, tmp_path, dict(logits=str(stored))), tmp_path / 'y.pth')
