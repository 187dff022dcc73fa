"""The exception tree, the hint that messages end with, and the wording of the table of mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from densekd import errors
from densekd.core.batch import Batch
from densekd.core.distiller import Distiller, check_needs, term_key
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import align
from densekd.core.schedule import Schedule, build_schedule
from densekd.core.taps import Place, Tap, Taps, parse_tap, resolve
from densekd.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DenseKDError,
    ShapeError,
    TapError,
    did_you_mean,
)
from densekd.registry import Registry, check_arguments


@pytest.mark.parametrize('kind', [ConfigError, TapError, ShapeError, CheckpointError, DataError])
def test_all_errors_have_one_root(kind: type[DenseKDError]) -> None:
    assert issubclass(kind, DenseKDError) and issubclass(kind, ValueError)
    # Siblings: catching a tap's error catches no config's.
    assert kind.__bases__ == (DenseKDError,)


def test_every_error_of_the_module_is_in_the_tree() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(classes) == 6
    assert all(c.__doc__ for c in classes)


def test_hint_names_the_near_and_then_all() -> None:
    hint = did_you_mean('c44', ['p3', 'c4', 'p4', 'c5'])
    assert hint == "Did you mean 'c4'? It has: c4, c5, p3, p4."


def test_hint_offers_several_that_are_as_near() -> None:
    assert did_you_mean('backbone.c', ['backbone.c4', 'backbone.c3']).startswith(
        "Did you mean 'backbone.c4' or 'backbone.c3'? "
    )


def test_hint_without_anything_near() -> None:
    assert did_you_mean('zzz', ['c4', 'c5']) == 'It has: c4, c5.'
    assert did_you_mean('zzz', []) == 'It has none.'


def test_hint_lists_options_once_and_takes_any_type() -> None:
    assert did_you_mean(3, iter([10, 10, 20])) == 'It has: 10, 20.'  # type: ignore[arg-type]


def test_a_long_list_is_cut_to_the_neighbours_of_what_was_written() -> None:
    options = [f'backbone.layer{i}' for i in range(30)] + ['neck.p3']
    hint = did_you_mean('neck.p33', options, limit=3)
    assert hint.startswith("Did you mean 'neck.p3'? It has 31, among them: ")
    listed = hint.partition('among them: ')[2].rstrip('.').split(', ')
    assert len(listed) == 3 and 'neck.p3' in listed
    assert did_you_mean('x', [str(i) for i in range(12)]).count(',') == 11


class _Needy(DistillLoss):
    needs = ('gt_boxes',)


class _Undeclared(DistillLoss):
    needs = ('gt_boxs',)


def _head(loss: DistillLoss) -> DistillationHead:
    return DistillationHead(loss=loss)


def _table() -> Registry:
    table = Registry('shape')

    @table.register
    class Square:
        def __init__(self, side: int, colour: str = 'red') -> None:
            self.side = side

    return table


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def _read(tap: Tap, net: nn.Module | None = None, **more: Any) -> None:
    net = net or _net()
    with Taps(net, {'a': tap}, **more) as taps:
        net(torch.ones(1, 2))
    taps['a']


def _with_position() -> None:
    net = nn.Bilinear(2, 2, 1)
    with Taps(net, {'a': Tap('', side='in', name='whole')}):
        net(input1=torch.ones(1, 2), input2=torch.ones(1, 2))


def _odd(output: Any) -> nn.Module:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return output

    return Odd()


MISTAKES: dict[str, tuple[type[DenseKDError], Callable[[], Any], str]] = {
    'unknown type': (
        ConfigError,
        lambda: _table().build(dict(type='Sqare', side=1), 'here'),
        "here: there is no shape 'Sqare'. Did you mean 'Square'? It has: Square.",
    ),
    'no type': (
        ConfigError,
        lambda: _table().build(dict(side=1), 'here'),
        'here: a shape needs a type. It has: Square.',
    ),
    'unknown argument': (
        ConfigError,
        lambda: _table().build(dict(type='Square', sides=1), 'here'),
        "here: Square takes no 'sides'. Did you mean 'side'? It has: colour, side.",
    ),
    'missing argument': (
        ConfigError,
        lambda: _table().build('Square', 'here'),
        "here: Square needs 'side'.",
    ),
    'name taken': (
        ConfigError,
        lambda: _table().register(dict, name='Square'),
        "shape 'Square' is registered already",
    ),
    'tap side': (
        TapError,
        lambda: Tap('neck', side='outside'),
        "tap 'neck': 'side' is 'out' or 'in', not 'outside'.",
    ),
    'tap call': (
        TapError,
        lambda: Tap('neck', call='last'),
        "tap 'neck': 'call' is a number or 'all', not 'last'.",
    ),
    'tap of no form': (
        TapError,
        lambda: parse_tap(3, {}, 'distillers[0].student_module'),
        'distillers[0].student_module: a tap is a name such as "backbone.c4", a module path, or '
        'dict(path=…, side=…, call=…), not 3.',
    ),
    'tap with an unknown key': (
        ConfigError,
        lambda: parse_tap(dict(path='neck', calls=1), {}, 'here'),
        "here: Tap takes no 'calls'. Did you mean 'call'? It has: call, coding, columns, copy, "
        'index, level, name, norm, path, rectified, side, tokens.',
    ),
    'no such place': (
        TapError,
        lambda: resolve(_net(), Tap('2'), 'distillers[0].student_module: the student', ['c2']),
        "distillers[0].student_module: the student: Sequential has no place '2'. "
        "Did you mean 'c2'? It has: 0, 1, c2.",
    ),
    'a place that never runs': (
        TapError,
        lambda: _read(Tap('1.unused'), _with_unused()),
        "tap '1.unused': the place exists in Sequential, but it never ran in this pass. Tap a "
        'module whose forward is called (a list of modules is not).',
    ),
    'a call that is not made': (
        TapError,
        lambda: _read(Tap('0', call=2)),
        "tap '0': call 2 was asked for, but the module ran 1 times in this pass.",
    ),
    'an element that is not there': (
        TapError,
        lambda: _read(Tap('', name='neck.p5', index=3), _odd((torch.ones(1), torch.ones(1)))),
        "tap 'neck.p5': element 3 was asked for, but there are 2.",
    ),
    'no tensor': (
        TapError,
        lambda: _read(Tap('', name='whole'), _odd('text')),
        "tap 'whole': the module hands out str, not a tensor.",
    ),
    'an element that is no tensor': (
        TapError,
        lambda: _read(Tap('', name='whole', index=1), _odd((torch.ones(1), None))),
        "tap 'whole': the module hands out NoneType, not a tensor.",
    ),
    'a list without tensors': (
        TapError,
        lambda: _read(Tap('', name='whole'), _odd([])),
        "tap 'whole': the module hands out list, not a tensor.",
    ),
    'input by keyword': (
        TapError,
        _with_position,
        "tap 'whole': Bilinear got no input by position.",
    ),
    'written to': (
        TapError,
        lambda: _read(Tap('0', copy=False), nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))),
        "tap '0': an in-place operation wrote to the tensor after it was read. Leave out "
        'copy=False.',
    ),
    'frozen': (
        TapError,
        lambda: _read(Tap('0'), _net().requires_grad_(False), student=True),
        "tap '0': no gradient reaches the student here, since everything before the place is "
        'frozen (frozen_stages, requires_grad=False), so that distilling it teaches nothing. Tap '
        'a deeper place, or unfreeze the stages before it.',
    ),
    'more calls than were known': (
        TapError,
        lambda: _read(Tap('0'), calls={'a': 2}),
        "tap '0': the module ran 1 times in this pass, but 2 times in an earlier one, by which "
        'its last call was to be known. Say which call is meant, as in dict(path=…, call=0).',
    ),
    'no channels': (
        TapError,
        lambda: Place(Tap('loss'), ((4,),), (None,)).channels,
        "tap 'loss': a scalar or a vector has no channels.",
    ),
    'batch field not declared': (
        ConfigError,
        lambda: Batch().gt_boxes,
        "a loss asks for 'gt_boxes' (true boxes in input pixels, N of (G, 4) as x1, y1, x2, y2; "
        'crowds left out) without having declared it in `needs`, so that nothing supplied it.',
    ),
    'need not supplied': (
        ConfigError,
        lambda: check_needs(
            [Distiller(_head(_Needy()), Tap('a'), Tap('a'), 'neck_x')], ['inputs', 'seed'], 'W'
        ),
        "distiller 'neck_x': _Needy needs gt_boxes (true boxes in input pixels, N of (G, 4) as "
        "x1, y1, x2, y2; crowds left out), which W can't supply for this student. It supplies: "
        'inputs, seed.',
    ),
    'need that does not exist': (
        ConfigError,
        lambda: _head(_Undeclared()).needs,
        "_Undeclared: there is no batch field 'gt_boxs'.",
    ),
    'word loss in a name': (
        ConfigError,
        lambda: term_key('neck', 'my_loss', {}),
        'distillers: the name \'my_loss\' holds the word "loss", by which the runner picks what '
        'it sums; the log puts "distill.loss_" before every name by itself.',
    ),
    'name used twice': (
        ConfigError,
        lambda: term_key('neck', 'pkd', {'neck_pkd': 1}),
        "distillers: the name 'pkd' is used twice; give each head a name of its own.",
    ),
    'channels differ': (
        ShapeError,
        lambda: check_same_shape(torch.ones(1, 2, 3, 3), torch.ones(1, 4, 3, 3), 'PKDLoss'),
        'PKDLoss: the student has 2 channels and the teacher 4, in (1, 2, 3, 3) and (1, 4, 3, 3). '
        'Give the head stu_connector=dict(type="ConvConnector").',
    ),
    'rows differ': (
        ShapeError,
        lambda: check_same_shape(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 4, 3), 'PKDLoss'),
        'PKDLoss: the student has 3 rows (H) and the teacher 4, in (1, 2, 3, 3) and (1, 2, 4, 3).',
    ),
    'dimensions differ': (
        ShapeError,
        lambda: check_same_shape(torch.ones(2), torch.ones(1, 2), 'PKDLoss'),
        'PKDLoss: the student tensor is (2,) and the teacher tensor (1, 2); they must have the '
        'same shape.',
    ),
    'unknown alignment': (
        ConfigError,
        lambda: align(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 'to_teachers'),
        "align: there is no alignment 'to_teachers'. Did you mean 'to_teacher'? It has: "
        'pool_larger, strict, to_student, to_teacher.',
    ),
    'sizes differ and must not': (
        ShapeError,
        lambda: align(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 4, 3), 'strict'),
        'the student map is 2x3 and the teacher map 4x3, and align="strict" allows no resizing. '
        'Tap places of equal stride, or choose one of to_teacher, to_student, pool_larger.',
    ),
    'schedule unit': (
        ConfigError,
        lambda: Schedule(by='step'),
        "schedule: 'by' is 'iter' or 'epoch', not 'step'.",
    ),
    'schedule decay': (
        ConfigError,
        lambda: Schedule(decay='cosin', end=3),
        "schedule: there is no decay 'cosin'. Did you mean 'cosine'? It has: cosine, linear.",
    ),
    'schedule without end': (
        ConfigError,
        lambda: Schedule(decay='linear', begin=4, end=4),
        "schedule: a linear decay needs 'end' after 'begin' (4), but it is 4.",
    ),
    'schedule warm-up': (
        ConfigError,
        lambda: Schedule(warmup=-1),
        "schedule: 'warmup' can't be negative, but it is -1.",
    ),
    'schedule that is no dict': (
        ConfigError,
        lambda: build_schedule(500, 'distillers[0]'),
        'distillers[0].schedule: a dict such as dict(warmup=500), not 500.',
    ),
    'schedule key': (
        ConfigError,
        lambda: build_schedule(dict(warm_up=500), 'distillers[0]'),
        "distillers[0].schedule: Schedule takes no 'warm_up'. Did you mean 'warmup'? It has: "
        'begin, by, connectors_first, decay, end, stop, warmup.',
    ),
    'argument of a function': (
        ConfigError,
        lambda: check_arguments(align, dict(student=1, teacher=1, hows=1), 'here'),
        "here: align takes no 'hows'. Did you mean 'how'? It has: how, student, teacher.",
    ),
}


def _with_unused() -> nn.Module:
    net = _net()
    net[1].add_module('unused', nn.Linear(2, 2))
    return net


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_has_its_sentence(mistake: str) -> None:
    kind, make, message = MISTAKES[mistake]
    with pytest.raises(DenseKDError) as caught:
        make()
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_no_assert_guards_user_input() -> None:
    # An assert vanishes under -O; the foundations raise classes of this tree.
    package = Path(errors.__file__).parent
    files = [package / 'errors.py', package / 'registry.py', *(package / 'core').glob('*.py')]
    assert len(files) > 8
    for file in files:
        assert '\n    assert ' not in file.read_text(encoding='utf-8'), file
