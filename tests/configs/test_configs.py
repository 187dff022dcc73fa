"""Every config that is shipped: it reads, it says what it is, and its terms reach the student."""

from __future__ import annotations

import ast
import datetime
import re
from pathlib import Path
from typing import Any

import pytest

from densekd.engine.preflight import check
from densekd.engine.run import is_distillation, prepare
from densekd.engine.stages import staged
from densekd.wrappers.config import load_config

ROOT = Path(__file__).resolve().parents[2]
ALL = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob('*.py'))
RUNNABLE = [name for name in ALL if '/_base_/' not in name]
DISTILLED = [name for name in RUNNABLE if name.startswith('configs/kd/')]
# These are trained at full size by the other files of this folder.
COCO = [name for name in DISTILLED if '_coco_' in name]
MASKS = [name for name in DISTILLED if '/segmentation/' in name and '_digits_' not in name]
TEMPLATES = ('configs/templates/own_coco_data.py', 'configs/templates/own_masks.py')
TEMPLATE = TEMPLATES[0]

# configs/kd/<method>/<task>/<arch>/
#   <method>_<student>_<schedule>_<data>_teacher_<teacher>_<where>.py
NAME = re.compile(
    r'configs/kd/(?P<method>\w+)/(?P<task>classification|detection|segmentation)/(?P<arch>\w+)/'
    r'(?P=method)_(?P<student>\w+?)_(?P<schedule>[0-9]+[ekx])_(?P<data>[a-z0-9]+)_teacher_'
    r'(?P<teacher>\w+?)_(?P<where>backbone|neck|head)_mimic\.py'
)
# Names that are older than the rule, and kept letter for letter.
KEPT = re.compile(r'configs/kd/(ofd/.*/ofdloss_|ab/.*/abloss_)[\w-]+\.py')


def stem(name: str) -> str:
    """Returns what a case is called: whole paths are too long for pytest."""
    return Path(name).stem


def tenth() -> list[str]:
    """Returns the configs that are checked at full size today: each has its turn in ten days."""
    day = datetime.datetime.now(datetime.timezone.utc).timetuple().tm_yday
    return DISTILLED[day % 10 :: 10]


def without_weights(name: str) -> Any:
    """Returns a config whose teachers have no checkpoint, so that nothing needs to be there."""
    cfg = prepare(str(ROOT / name))
    if not is_distillation(cfg):
        return cfg
    given = cfg.model.get('teacher') or []  # peers teach each other without one
    for teacher in given if isinstance(given, list) else [given]:
        teacher.pop('checkpoint', None)
        teacher['untrained'] = True
    return cfg


def without_rest(cfg: Any) -> Any:
    """Returns a config whose bounds no student meets, so that their wiring shows."""
    for distiller in cfg.model.get('distillers') or []:
        loss = distiller.head.get('loss')
        if loss and loss.type == 'BoundedRegressionLoss':
            loss.margin = 1e3
    return cfg


def refuse_dead(name: str, full_size: bool) -> None:
    """Checks a config; its terms must be positive and reach the student."""
    reports = [
        check(without_rest(stage), full_size=full_size, handed=handed)
        for _, stage, handed in staged(without_weights(name))
    ]
    assert all(report.own or report.terms for report in reports)
    terms = [term for report in reports for term in report.terms]
    for term in terms:
        assert term.value > 0 and term.gradient > 0, term
    assert bool(terms) == (name in (*DISTILLED, *TEMPLATES))


@pytest.mark.parametrize('name', ALL, ids=stem)
def test_it_opens_with_a_docstring(name: str) -> None:
    """Runnable ones give the command, those of real data what to expect of it and whose it is."""
    text = ast.get_docstring(ast.parse((ROOT / name).read_text()))
    assert text
    if name in RUNNABLE:
        assert 'densekd ' in text
    if name in DISTILLED and '_digits_' not in name:
        assert name in text and 'Expected: ' in text
        assert 'published by' in text or 'no figure is published' in text
        assert 'Not yet run by us' in text or 'Ours: ' in text


@pytest.mark.parametrize('name', ALL, ids=stem)
def test_it_reads_and_reads_again(name: str, tmp_path: Path, work_dir: Path) -> None:
    """What a runner writes into its work_dir is the same config, and from any folder."""
    cfg = load_config(str(ROOT / name))
    cfg.dump(str(tmp_path / 'dumped.py'))
    again = load_config(tmp_path / 'dumped.py')
    assert again._cfg_dict == cfg._cfg_dict


@pytest.mark.parametrize('name', DISTILLED, ids=stem)
def test_its_name_says_what_it_is(name: str) -> None:
    """The path follows the rule, or is one of the names that are kept."""
    found = NAME.fullmatch(name)
    assert found or KEPT.fullmatch(name)
    if found:
        assert found['student'].startswith(found['arch'])


@pytest.mark.parametrize('name', DISTILLED, ids=stem)
def test_it_is_listed_where_its_method_has_a_page(name: str) -> None:
    """A README of the method links to its configs of real data."""
    page = ROOT / '/'.join(name.split('/')[:3]) / 'README.md'
    if '_digits_' not in name:
        assert name.split('/', 3)[3] in page.read_text()


@pytest.mark.parametrize('name', RUNNABLE, ids=stem)
def test_every_term_reaches_the_student(name: str) -> None:
    """On one small image."""
    refuse_dead(name, full_size=False)


@pytest.mark.parametrize('name', tenth(), ids=stem)
def test_at_full_size_in_turn(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A tenth of them each day, on the batch that training would have."""
    with capsys.disabled():
        print(f'\nat full size today: {name}')
    refuse_dead(name, full_size=True)


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in RUNNABLE if n not in (*COCO, *MASKS)], ids=stem)
def test_at_full_size(name: str) -> None:
    """All but those that the other files of this folder train, which begins with this check."""
    refuse_dead(name, full_size=True)


@pytest.mark.parametrize(
    ('template', 'head', 'depths'),
    [(TEMPLATES[0], 'bbox_head', (50, 101)), (TEMPLATES[1], 'decode_head', (18, 101))],
    ids=['boxes', 'masks'],
)
@pytest.mark.filterwarnings('ignore:teacher. no checkpoint is given')
def test_the_template_is_checked_as_it_is(
    template: str, head: str, depths: tuple[int, int]
) -> None:
    """Before there is data or a teacher; both networks have the template's classes."""
    cfg = prepare(str(ROOT / template))
    assert cfg.model.teacher.checkpoint is None
    assert check(cfg, full_size=False).terms
    for network in (cfg.model.student, cfg.model.teacher.model):
        assert network[head].num_classes == len(cfg.classes)
    assert (cfg.model.student.backbone.depth, cfg.model.teacher.model.backbone.depth) == depths


@pytest.mark.parametrize('template', TEMPLATES, ids=stem)
def test_the_teacher_of_the_template_is_the_one_it_names(template: str) -> None:
    """One file trains what the other learns from, on the same data."""
    cfg = prepare(str(ROOT / template))
    teacher = prepare(str(ROOT / template.replace('.py', '_teacher.py')))
    assert teacher.model == cfg.model.teacher.model
    assert teacher.train_dataloader == cfg.train_dataloader


def test_the_names_that_are_public() -> None:
    """These paths are in other people's scripts."""
    for arch in ('faster_rcnn', 'retinanet'):
        path = f'{arch}/ofdloss_{arch}_r50_fpn_1x_coco_teacher_r101_backbone_mimic.py'
        assert f'configs/kd/ofd/detection/{path}' in ALL
    for data in ('512x512_40k_voc12', '512x1024_80k_cityscapes'):
        for where in ('backbone', 'head'):
            path = (
                f'deeplabv3plus/ofdloss_deeplabv3plus_r18-d8_{data}_distillation_8xb16_teacher_'
                f'r101_{where}_mimic.py'
            )
            assert f'configs/kd/ofd/segmentation/{path}' in ALL
    for name in ('abloss_pretrain_backbone', 'abloss_logits'):
        path = f'classification/resnet/{name}_resnet50_resnet18_8xb32_in1k.py'
        assert f'configs/kd/ab/{path}' in ALL
    for path in (
        'wideresnet/ofdloss_wrn16_2_cifar10_distillation_8xb16_teacher_wrn28_4_train.py',
        'wideresnet/ofdloss_wrn16_2_cifar100_distillation_8xb16_teacher_wrn28_4_train.py',
        'wideresnet/ofdloss_wrn16_4_cifar100_distillation_8xb16_teacher_wrn28_4_train.py',
        'resnet/ofdloss_res18_cifar10_distillation_8xb16_teacher_res50_train.py',
        'resnet/ofdloss_res18_cifar100_distillation_8xb16_teacher_res50_train.py',
        'resnet/ofdloss_res18_imagenet_distillation_8xb32_teacher_res50_train.py',
        'resnet/ofdloss_res50_imagenet_distillation_8xb32_teacher_res152_train.py',
    ):
        assert f'configs/kd/ofd/classification/{path}' in ALL


def test_the_rule_can_fail() -> None:
    """A name without its teacher, or under another method, is refused."""
    good = 'configs/kd/pkd/detection/retinanet/pkd_retinanet_r50_1x_coco_teacher_r101_neck_mimic.py'
    assert NAME.fullmatch(good)
    assert not NAME.fullmatch(good.replace('_teacher_r101', ''))
    assert not NAME.fullmatch(good.replace('/pkd_', '/ofd_'))
