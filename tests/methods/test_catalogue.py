"""What the catalogue says is what the code does."""

from __future__ import annotations

import re
import types

import pytest
import torch

import densekd.methods
from densekd.core.anatomy import Anatomy
from densekd.core.batch import FIELDS
from densekd.core.taps import Tap
from densekd.errors import ConfigError, DenseKDError
from densekd.methods import DistillationHead, catalogue
from densekd.methods.catalogue import BOXES, KINDS, LABELS, NO, STAGES, TASKS, UNLIKE, YES, Method
from densekd.registry import HEADS, LOSSES, PRESETS

# Tests of other files may have registered things of their own in this process.
OWN = [method for method in catalogue.catalogue() if method.own]
OF_PACKAGE = [
    name for name in HEADS if HEADS.get(name, '').__module__.startswith('densekd.methods.')
]
KIND_OF_TASK = {
    'one-stage': 'detection',
    'two-stage': 'detection',
    'segmentor': 'segmentation',
    'classifier': 'classification',
}
FREE = {'inputs', 'valid', 'anchors', 'anchors_valid', 'iteration', 'seed'}


def ids(method: Method) -> str:
    return method.name


def by_name(name: str) -> Method:
    (method,) = (method for method in OWN if method.name == name)
    return method


@pytest.mark.parametrize('name', OF_PACKAGE)
def test_a_head_belongs_to_one_method(name: str) -> None:
    assert [name in method.heads for method in OWN].count(True) == 1


def test_nothing_of_the_package_is_left_out() -> None:
    """Every exported head, loss and function has a method; the plain head and connectors none."""
    assert len(OF_PACKAGE) >= 14
    found = {
        name
        for method in OWN
        for name in (*method.heads, *method.losses, *(f.__name__ for f in method.functions))
    }
    exported = {
        name for name in densekd.methods.__all__ if re.search(r'DistillationHead$|Loss$', name)
    }
    maths = {
        name
        for name in densekd.methods.__all__
        if isinstance(getattr(densekd.methods, name), types.FunctionType) and name != 'build'
    }
    assert len(maths) >= 15
    assert (exported | maths) - found == {'DistillationHead'}


@pytest.mark.parametrize('method', OWN, ids=ids)
def test_a_docstring_has_all_its_fields(method: Method) -> None:
    assert method.label and method.summary.endswith('.')
    assert method.kind in KINDS
    assert method.papers and all(catalogue.shorten(paper)[1] > 2010 for paper in method.papers)
    assert re.fullmatch(r'\w[\w ]*( et al\.| & \w+)?, [\w ]+ \d{4}', method.paper)
    assert method.taps
    assert method.stages.partition(';')[0] in STAGES
    assert method.tasks
    doc = __import__(method.module, fromlist=['_']).__doc__
    for field in ('Stages', 'Tasks'):
        assert len(re.findall(rf'^{field}: .*\.$', doc, re.MULTILINE)) == 1, field
    written = re.search(r'^Tasks: (.*)\.$', doc, re.MULTILINE)
    assert written is not None and tuple(written[1].split(', ')) == method.tasks
    assert set(method.tasks) <= set(TASKS)


@pytest.mark.parametrize('method', OWN, ids=ids)
def test_its_functions_have_a_formula_and_its_options_a_line(method: Method) -> None:
    assert method.functions and method.losses
    for function in method.functions:
        assert catalogue.formula(function)
        assert '>>>' not in catalogue.formula(function)
        assert catalogue.signature(function).startswith(f'{function.__name__}(\n    ')
        assert ',  # ' in catalogue.signature(function)  # the shapes
    for name in method.losses:
        loss = LOSSES.get(name, '')
        assert 'loss_weight' in catalogue.options(loss)


def toy_anatomy(kind: str) -> Anatomy:
    """Every named tap that models of a kind have."""
    stages = [f'backbone.c{i}{end}' for i in (2, 3, 4, 5) for end in ('', '.pre_relu')]
    further = {
        'one-stage': ['neck.p3', 'neck.p4', 'head.cls_logits', 'head.bbox_deltas'],
        'two-stage': [
            'neck.p2', 'neck.p3', 'rpn.objectness', 'rpn.deltas', 'roi.cls_logits',
            'roi.bbox_deltas',
        ],
        'segmentor': ['decode.aspp', 'decode.feature', 'decode.logits', 'aux.logits'],
        'classifier': ['embedding', 'logits'],
    }  # fmt: skip
    taps = {
        name: Tap(name, name=name, norm='norm' if 'pre_relu' in name else None)
        for name in (*stages, *further[kind])
    }
    return Anatomy(taps, taps, kind)


@pytest.mark.parametrize('name', [name for m in OWN for name in m.presets])
def test_the_taps_and_tasks_are_those_of_the_preset(name: str) -> None:
    """What a preset taps is named, and it fits a model of each task that is named."""
    method = catalogue.find(name, OWN)
    preset = PRESETS.get(name, '')
    fits = set()
    for kind, task in KIND_OF_TASK.items():
        for at in preset.at:
            try:
                distillers = preset(toy_anatomy(kind), at)
            except DenseKDError:
                continue
            fits.add(task)
            for distiller in distillers:
                places = distiller['student_module']
                for place in places if isinstance(places, list) else [places]:
                    assert re.sub(r'(?<=[cp])\d', 'N', place) in method.taps
    assert set(method.tasks) <= fits


def test_every_field_of_a_batch_is_known_to_need_the_truth_or_not() -> None:
    assert {*LABELS, *BOXES} | FREE == set(FIELDS)
    assert not FREE & {*LABELS, *BOXES}


NEEDS = {'pkd': 'nothing', 'mgd': 'nothing', 'fgfi': 'boxes', 'chen2017': 'labels, boxes'}


@pytest.mark.parametrize(('name', 'needs'), NEEDS.items())
def test_needs(name: str, needs: str) -> None:
    assert by_name(name).needs == needs


ADDS = {
    'at': NO,
    'kd': NO,
    'chen2017': NO,
    'pkd': UNLIKE,
    'fgfi': YES,
    'ofd': YES,
    'mgd': YES,
    'fsp': UNLIKE,
}


@pytest.mark.parametrize(('name', 'adds'), ADDS.items())
def test_adds_parameters(name: str, adds: str) -> None:
    """AT collapses channels, PKD converts unlike ones, FGFI and OFD convert always."""
    assert by_name(name).adds_parameters == adds


def test_listing_leaves_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    assert [method.adds_parameters for method in OWN].count(YES) >= 4
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_is_by_kind_then_year() -> None:
    keys = [(KINDS.index(method.kind), method.year, method.name) for method in OWN]
    assert keys == sorted(keys)
    assert len({method.name for method in OWN}) == len(OWN)


@pytest.mark.parametrize(
    'name', ['pkd', 'PKD', 'PKDLoss', 'pkd_loss', 'densekd.PKDDistillationHead', 'pkdloss']
)
def test_a_method_is_found_by_any_of_its_names(name: str) -> None:
    assert catalogue.find(name).name == 'pkd'


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no method 'fitnets2'. Did you mean 'fitnet'?"):
        catalogue.find('fitnets2')
    with pytest.raises(ConfigError, match="Did you mean 'BoundedRegressionLoss'"):
        catalogue.find('BoundedRegresionLos')
    with pytest.raises(ConfigError, match=r"no method 'zzz'\. It has.*: .*pkd"):
        catalogue.find('zzz', [by_name('at'), by_name('pkd')])


def test_a_method_from_outside_may_say_little() -> None:
    """It has a row with gaps, after the package's own."""
    module = types.ModuleType('outside_little')
    head = type('LittleDistillationHead', (DistillationHead,), {'__module__': module.__name__})
    HEADS.register(head)
    try:
        method = catalogue.catalogue()[-1]
    finally:
        HEADS._table.pop('LittleDistillationHead')
    assert (method.name, method.label, method.heads) == (
        'outside_little', 'outside_little', ('LittleDistillationHead',),
    )  # fmt: skip
    assert not method.own
    assert (method.kind, method.paper, method.year, method.adds_parameters) == ('', '', 0, '')
