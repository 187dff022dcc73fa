"""Odd data is trained on as it should be, by every method."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.data_checks import check_data
from densekd.engine.run import prepare, train
from tests.helpers.runs import digits_config

Content = dict[str, Any]
STEPS = 3  # batches of 4 images


@HOOKS.register_module(force=True)
class CollectHook(Hook):
    """Keeps what each step logs."""

    steps: list[dict[str, float]] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Notes the terms."""
        self.steps.append({k: float(v.detach()) for k, v in outputs.items()})


def annotations(digits: Path) -> Content:
    """Returns the training annotations, of the first images only."""
    content = json.loads((digits / 'annotations' / 'instances_train.json').read_text())
    content['images'] = content['images'][: 4 * STEPS]
    kept = {image['id'] for image in content['images']}
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in kept]
    return content


def losses_on(
    content: Content, digits: Path, folder: Path, model: str, **options: Any
) -> list[dict[str, float]]:
    """Trains with every method on these annotations, and returns what each step logged."""
    folder.mkdir(exist_ok=True)
    path = folder / 'instances.json'
    path.write_text(json.dumps(content))
    hooks = [dict(type='CollectHook')]
    cfg = digits_config(digits, folder / 'work', model=model, epochs=1, custom_hooks=hooks)
    dataset = cfg.train_dataloader.dataset
    dataset.update(ann_file=str(path), filter_cfg=dict(filter_empty_gt=False))
    if 'classes' in options:
        dataset.metainfo = dict(classes=options['classes'])
        for network in (cfg.model.student, cfg.model.teacher.model):
            head = network.bbox_head if model == 'retinanet' else network.roi_head.bbox_head
            head.num_classes = len(options['classes'])
        cfg.model.pop('classes', None)
        cfg = prepare(cfg, folder / 'work')
    check_data(cfg)
    CollectHook.steps.clear()
    last = train(cfg, preflight=False)
    weights = read_checkpoint(last)['state_dict'].values()
    assert all(w.isfinite().all() for w in weights if w.is_floating_point())
    steps = copy.deepcopy(CollectHook.steps)
    assert len(steps) == math.ceil(len(content['images']) / 4)
    assert all(math.isfinite(v) for step in steps for v in step.values()), steps
    return steps


def extra(content: Content, bbox: list[float], area: float, **more: Any) -> Content:
    """Adds an object of this box to every image."""
    content = copy.deepcopy(content)
    for number, image in enumerate(content['images']):
        entry = dict(content['annotations'][0], id=10_000 + number, image_id=image['id'])
        content['annotations'].append({**entry, 'bbox': bbox, 'area': area, **more})
    return content


def gaps(content: Content) -> Content:
    """Gives the categories other ids, with gaps between them and not in order."""
    content = copy.deepcopy(content)
    ids = {c['id']: 900 - 7 * i * i for i, c in enumerate(content['categories'])}
    for category in content['categories']:
        category['id'] = ids[category['id']]
    for entry in content['annotations']:
        entry['category_id'] = ids[entry['category_id']]
    return content


SAME: dict[str, Callable[[Content], Content]] = {
    'category ids with gaps': gaps,
    'boxes without width': lambda c: extra(c, [20.0, 20.0, 0.0, 12.0], 0.0),
    'boxes without height': lambda c: extra(c, [20.0, 20.0, 12.0, 0.0], 0.0),
    'boxes of negative width': lambda c: extra(c, [20.0, 20.0, -9.0, 12.0], 108.0),
    'boxes outside the image': lambda c: extra(c, [70.0, -40.0, 20.0, 20.0], 400.0),
    'boxes that are marked ignore': lambda c: extra(c, [4.0, 4.0, 20.0, 20.0], 400.0, ignore=1),
}


def emptied(content: Content, first: int) -> Content:
    """Takes the objects from all images but the first few."""
    kept = {image['id'] for image in content['images'][:first]}
    return {
        **content, 'annotations': [a for a in content['annotations'] if a['image_id'] in kept]
    }  # fmt: skip


def crowds(content: Content, first: int) -> Content:
    """Makes the objects of all images but the first few crowds."""
    content = copy.deepcopy(content)
    kept = {image['id'] for image in content['images'][:first]}
    for entry in content['annotations']:
        entry['iscrowd'] = int(entry['image_id'] not in kept)
    return content


FINITE: dict[str, tuple[Callable[[Content], Content], dict[str, Any]]] = {
    'most images empty': (lambda c: emptied(c, 1), {}),
    'most images crowds alone': (lambda c: crowds(c, 1), {}),
    'boxes over the edge': (lambda c: extra(c, [-20.0, 50.0, 40.0, 40.0], 1600.0), {}),
    'boxes larger than the image': (lambda c: extra(c, [-9.0, -9.0, 99.0, 99.0], 9801.0), {}),
    'boxes of a pixel': (lambda c: extra(c, [63.5, 10.0, 1.0, 1.0], 1.0), {}),
    'one class': (lambda c: c, {'classes': ['one']}),
}
# Where no anchor or region is positive, these have nothing to compare.
OF_POSITIVES = re.compile(r'fgfi|bounded|loss_bbox|loss_rpn_bbox|acc')


@pytest.fixture(scope='module')
def usual(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The run on the annotations as they are."""
    folder = tmp_path_factory.mktemp('usual')
    return losses_on(annotations(digits), digits, folder, 'retinanet')


@pytest.mark.parametrize('name', SAME)
def test_objects_that_do_not_count_change_nothing(
    name: str, digits: Path, tmp_path: Path, usual: list[dict[str, float]]
) -> None:
    """The very numbers of a run without them, with a term of each method."""
    steps = losses_on(SAME[name](annotations(digits)), digits, tmp_path, 'retinanet')
    for ours, theirs in zip(steps, usual, strict=True):
        for key in theirs:
            if 'time' not in key:
                assert ours[key] == theirs[key], key


@pytest.mark.parametrize('model', ['retinanet', 'faster_rcnn'])
@pytest.mark.parametrize('name', FINITE)
def test_every_method_trains_on_it(name: str, model: str, digits: Path, tmp_path: Path) -> None:
    """All terms are finite, and none is zero but those that need a positive in the batch."""
    change, options = FINITE[name]
    steps = losses_on(change(annotations(digits)), digits, tmp_path, model, **options)
    for step in steps:
        terms = {k: v for k, v in step.items() if k.startswith('distill.loss')}
        assert len(terms) >= 7
        assert [k for k, v in terms.items() if v == 0 and not OF_POSITIVES.search(k)] == []
    if name.startswith('most images'):
        assert any(step['student.loss_bbox'] == 0 for step in steps)
