"""From configs to networks: the student, teachers and their weights, and the distillers."""

from __future__ import annotations

import inspect
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from densekd.core.checkpoint import file_hash, weights_hash
from densekd.errors import CheckpointError, ConfigError
from densekd.wrappers.build import (
    DISTILLER_KEYS,
    TEACHER_KEYS,
    build_network,
    build_teachers,
    check_distillers,
    model_config,
    without_pretrained,
)
from densekd.wrappers.classifier import DistillClassifier
from densekd.wrappers.model import DistillModel

pytest.importorskip('mmdet')

from tests.helpers.classifiers import classifier
from tests.helpers.detectors import entry, retinanet


def teachers(cfg: Any, seed: int = 0, trust: bool = False) -> Any:
    return build_teachers(cfg, 'mmdet', seed, trust)


def refusal(cfg: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        teachers(cfg)
    return str(caught.value)


def untrained(**more: Any) -> dict[str, Any]:
    return dict(model=retinanet(), untrained=True, **more)


# The model's part of a config -------------------------------------------------------------------


def test_the_model_of_a_file_a_config_a_whole_dict_or_its_own_dict(tmp_path: Path) -> None:
    from mmengine.config import Config

    path = tmp_path / 'a.py'
    path.write_text("model = dict(type='A', depth=18)\n")
    wanted = {'type': 'A', 'depth': 18}
    for source in (path, str(path), Config({'model': wanted}), {'model': wanted}, wanted):
        found = model_config(source, 'student')
        assert found == wanted and type(found) is dict
    network = nn.Linear(1, 1)
    assert model_config(network, 'student') is network


def test_a_models_config_is_a_copy() -> None:
    given = {'type': 'A', 'neck': {'type': 'B'}}
    model_config(given, 'student')['neck']['type'] = 'C'
    assert given['neck']['type'] == 'B'


def test_the_student_of_a_distillation_config_is_meant() -> None:
    inner = {'type': 'A', 'depth': 18}
    config = {'model': {'type': 'densekd.DistillDetector', 'student': inner, 'teacher': {}}}
    assert model_config(config, 'teacher.model') == inner


@pytest.mark.parametrize('source', [None, True, 3, 1.5])
def test_what_is_no_model_is_refused(source: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        model_config(source, 'student')
    assert (
        str(caught.value)
        == f'student: a config path, a Config or a dict is needed, not {source!r}.'
    )


@pytest.mark.parametrize('source', [{}, {'model': {}}, {'model': None}, {'optimizer': {}}])
def test_a_config_without_a_model_is_refused(source: Any) -> None:
    with pytest.raises(ConfigError, match=r'^student: the config given has no model\.$'):
        model_config(source, 'student')


# Networks ---------------------------------------------------------------------------------------


def test_a_network_is_built_in_its_toolboxs_scope() -> None:
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmengine'):
        model = build_network(retinanet(), 'mmdet', 'student')
        assert DefaultScope.get_current_instance().scope_name == 'mmengine'
    assert type(model).__module__.startswith('mmdet')


def test_a_network_is_taken_as_it_is() -> None:
    network = nn.Linear(1, 1)
    assert build_network(network, 'mmdet', 'student') is network


def test_an_unknown_type_names_who_and_what() -> None:
    with pytest.raises(ConfigError, match="^student: mmdet can't build RetinaNett: .*RetinaNett"):
        build_network(dict(retinanet(), type='RetinaNett'), 'mmdet', 'student')


def test_an_argument_that_the_toolbox_refuses_names_who_and_what() -> None:
    with pytest.raises(
        ConfigError, match="^teacher.model: mmdet can't build RetinaNet: .*backbones"
    ):
        build_network(dict(retinanet(), backbones=1), 'mmdet', 'teacher.model')


def test_nothing_is_fetched_for_a_network_whose_checkpoint_brings_all() -> None:
    config = {
        'pretrained': 'torchvision://resnet50',
        'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'}},
        'neck': {'init_cfg': {'type': 'Xavier', 'layer': 'Conv2d'}},
        'heads': [
            {'init_cfg': [{'type': 'Pretrained', 'checkpoint': 'x'}]},
            ({'pretrained': 'y'},),
        ],
    }
    assert without_pretrained(config) == {
        'pretrained': None,
        'backbone': {'init_cfg': None},
        'neck': {'init_cfg': {'type': 'Xavier', 'layer': 'Conv2d'}},
        'heads': [{'init_cfg': None}, ({'pretrained': None},)],
    }
    assert config['pretrained'] == 'torchvision://resnet50'


# Teachers ---------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    model = build_network(retinanet(), 'mmdet', 'teacher')
    path = tmp_path / 'teacher.pth'
    meta = {'dataset_meta': {'CLASSES': ('one', 'two', 'three')}, 'epoch': 3}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    return path


def test_a_teacher_has_its_checkpoints_weights_and_is_frozen(checkpoint: Path) -> None:
    found = teachers(dict(model=retinanet(), checkpoint=str(checkpoint)))
    assert list(found) == ['teacher']
    model = found['teacher'].model
    saved = torch.load(checkpoint, weights_only=False)['state_dict']
    own = model.state_dict()
    assert own.keys() == saved.keys() and all(torch.equal(own[k], saved[k]) for k in saved)
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_the_manifest_says_where_a_teacher_came_from(checkpoint: Path) -> None:
    manifest = teachers(dict(model=retinanet(), checkpoint=str(checkpoint)))['teacher'].manifest
    assert manifest['checkpoint'] == str(checkpoint)
    assert manifest['sha256'] == file_hash(checkpoint)
    assert manifest['dataset_meta'] == {'classes': ['one', 'two', 'three']}
    assert not manifest['untrained']


def test_a_teacher_of_other_weights_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match='the teacher RetinaNet|The teacher config'):
        teachers(dict(model=retinanet(width=8), checkpoint=str(checkpoint)))


def test_code_in_a_teachers_checkpoint_needs_trust(tmp_path: Path) -> None:
    model = build_network(retinanet(), 'mmdet', 'teacher')
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': nn.Linear(1, 1)}, path)
    with pytest.raises(CheckpointError, match='carries code'):
        teachers(dict(model=retinanet(), checkpoint=path))
    found = teachers(dict(model=retinanet(), checkpoint=path), trust=True)['teacher']
    assert weights_hash(found.model) == weights_hash(model)


def test_a_bare_model_is_a_teacher_too() -> None:
    with pytest.warns(
        UserWarning, match='^teacher: no checkpoint is given, so that the teacher is'
    ):
        by_config = teachers(retinanet())['teacher']
    assert by_config.manifest['untrained']
    network = build_network(retinanet(), 'mmdet', 'teacher')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        by_network = teachers(network)['teacher']
    assert by_network.model is network and not by_network.manifest['untrained']


def test_an_untrained_teacher_can_be_meant() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        manifest = teachers(untrained())['teacher'].manifest
    assert manifest['untrained'] and manifest['declared_untrained']


def test_a_teacher_fetches_no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*unused: Any, **more: Any) -> None:
        raise AssertionError('a download was tried')

    monkeypatch.setattr('urllib.request.urlopen', no_network)
    config = retinanet(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'))
    model = teachers(dict(model=config, untrained=True))['teacher'].model
    model.init_weights()
    assert 'Pretrained' not in str(model.backbone.init_cfg)


def test_several_teachers_have_names() -> None:
    found = teachers([untrained(name='a'), untrained(name='b')])
    assert list(found) == ['a', 'b'] and [t.name for t in found.values()] == ['a', 'b']
    assert weights_hash(found['a'].model) != weights_hash(found['b'].model)


def test_building_teachers_draws_from_no_generator_of_the_callers() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = weights_hash(teachers(untrained())['teacher'].model)
    after = torch.random.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0]) and (before[1] == after[1]).all()
    assert before[2] == after[2]
    torch.manual_seed(99)
    assert weights_hash(teachers(untrained())['teacher'].model) == first
    assert weights_hash(teachers(untrained(), seed=1)['teacher'].model) != first


def test_sync_bn_is_reverted_in_a_teacher() -> None:
    config = retinanet(norm_cfg=dict(type='SyncBN', requires_grad=True))
    model = teachers(dict(model=config, untrained=True))['teacher'].model
    assert not any('SyncBatchNorm' in type(m).__name__ for m in model.modules())
    assert not any(m.training for m in model.modules())


MISTAKES = {
    'none': (None, 'teacher: there is none. Give teacher=dict(model=…, checkpoint=…).'),
    'empty list': ([], 'teacher: the list is empty. Give teacher=dict(model=…, checkpoint=…).'),
    'no model': (
        dict(checkpoint='a.pth'),
        "teacher: 'model' is missing: a config path, a Config or a dict.",
    ),
    'no names': (
        [dict(model='a'), dict(model='b')],
        "teacher[0]: with several teachers each needs a 'name'.",
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_has_its_sentence(mistake: str) -> None:
    cfg, message = MISTAKES[mistake]
    assert refusal(cfg) == message


def test_an_unknown_key_is_named_with_a_near_one() -> None:
    message = refusal(dict(model='a.py', checkpoint_file='b.pth'))
    assert message.startswith(
        "teacher: there is no key 'checkpoint_file'. Did you mean 'checkpoint'? It has: "
    )


def test_a_name_used_twice_is_refused() -> None:
    assert refusal([untrained(name='a'), untrained(name='a')]) == (
        "teacher[1]: the name 'a' is used twice."
    )


def test_a_teachers_missing_config_says_whose_it_is() -> None:
    assert 'there is no such config' in refusal(dict(model='missing.py'))
    assert refusal(dict(model=3)) == (
        'teacher.model: a config path, a Config or a dict is needed, not 3.'
    )


# Distillers -------------------------------------------------------------------------------------


def test_one_distiller_is_a_list_of_one() -> None:
    entry = dict(student_module='a', head='b')
    assert (
        check_distillers(entry)
        == check_distillers([entry])
        == check_distillers((entry,))
        == [entry]
    )
    assert check_distillers([entry])[0] is not entry


BROKEN = {
    'a string': ('ofd', "distillers: a list of dicts is needed, not 'ofd'."),
    'a number': (3, 'distillers: a list of dicts is needed, not 3.'),
    'a string inside': (['ofd'], "distillers[0]: a dict is needed, not 'ofd'."),
    'no head': ([dict(student_module='a')], "distillers[0]: 'head' is missing."),
    'no student_module': (
        [dict(student_module='a', head='b'), dict(teacher_module='a', head='b')],
        "distillers[1]: 'student_module' is missing.",
    ),
    'an unknown key': (
        [dict(student_modul='a', head='b')],
        "distillers[0]: there is no key 'student_modul'. Did you mean 'student_module'? It has: "
        'head, schedule, student_module, teacher, teacher_module.',
    ),
}


@pytest.mark.parametrize('mistake', BROKEN)
def test_a_broken_list_of_distillers_has_its_sentence(mistake: str) -> None:
    cfg, message = BROKEN[mistake]
    with pytest.raises(ConfigError) as caught:
        check_distillers(cfg)
    if mistake == 'an unknown key':
        # 'teacher_module' is near as well.
        assert str(caught.value).startswith(message.split('?')[0])
    else:
        assert str(caught.value) == message


def test_the_readme_names_every_key() -> None:
    """Of a distiller, of a teacher and of the model; and none that there is not."""
    text = (Path(__file__).parents[2] / 'README.md').read_text()
    tables = text.partition('<details>')[2].partition('</details>')[0].split('| --- | --- |')[1:]
    model: list[str] = list(inspect.signature(DistillModel).parameters)
    for table, keys in zip(tables, (DISTILLER_KEYS, TEACHER_KEYS, model), strict=True):
        named = ' '.join(line.split('|')[1] for line in table.splitlines() if line.startswith('|'))
        found = re.findall(r'`(\w+)`', named)
        assert sorted(set(found) - {'stages'}) == sorted(keys)


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    'a seed': (dict(seed='x'), "^seed: a whole number is needed, not 'x'.$"),
    'task_loss': (dict(task_loss='no'), "^task_loss: True or False is needed, not 'no'.$"),
    'trust': (dict(trust_checkpoint='no'), '^trust_checkpoint: True or False is needed'),
    'inherit': (
        dict(inherit=5),
        r"^inherit: a list of patterns such as \['backbone.*'\] is needed",
    ),
    'trainable': (dict(trainable=5), '^train: a list of patterns .* is needed, not 5.$'),
    'a list of numbers': (dict(trainable=[5]), r'^train: .* is needed, not \[5\].$'),
    "a teacher's name": (
        dict(teacher=[dict(model=classifier(), untrained=True, name=5)]),
        "^teacher: a name is a text such as 'wide', not 5.$",
    ),
    'whom a distiller reads': (
        dict(distillers=[entry('logits', 'KD', teacher=5)]),
        r'^distillers\[0\].teacher: a list of names of teachers .* is needed, not 5.$',
    ),
    'whom it reads, listed': (
        dict(distillers=[entry('logits', 'KD', teacher=[5])]),
        r'^distillers\[0\].teacher: a list of names .* is needed, not \[5\].$',
    ),
}


def distil(**given: Any) -> DistillClassifier:
    teacher = dict(model=classifier(), untrained=True)
    distillers = [entry('logits', 'KD')]
    return DistillClassifier(
        classifier(), **{'teacher': teacher, 'distillers': distillers, **given}
    )


@pytest.mark.parametrize('mistake', list(UNFIT))
def test_a_value_of_another_kind_has_its_sentence(mistake: str) -> None:
    given, sentence = UNFIT[mistake]
    with pytest.raises(ConfigError, match=sentence):
        distil(**given)


def test_a_text_is_a_list_of_one() -> None:
    model = distil(trainable='head', inherit='head')
    assert [n for n, p in model.student.named_parameters() if p.requires_grad] == [
        'head.fc.weight', 'head.fc.bias',
    ]  # fmt: skip
