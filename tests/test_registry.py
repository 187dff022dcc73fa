"""The name table: what it builds, and that it needs neither scopes nor mmengine."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from densekd.errors import ConfigError
from densekd.registry import Registry, check_arguments


class Square:
    def __init__(self, side: int = 1, colour: str = 'red') -> None:
        self.side, self.colour = side, colour


@pytest.fixture
def shapes() -> Registry:
    table = Registry('shape')
    table.register(Square)
    return table


def test_a_name_is_built_with_its_arguments(shapes: Registry) -> None:
    built = shapes.build(dict(type='Square', side=3), 'here')
    assert (type(built), built.side, built.colour) == (Square, 3, 'red')


def test_a_bare_name_is_a_config(shapes: Registry) -> None:
    assert shapes.build('Square', 'here').side == 1


def test_the_scope_of_the_package_may_be_written(shapes: Registry) -> None:
    assert shapes.build(dict(type='densekd.Square', side=2), 'here').side == 2


def test_a_class_may_stand_for_its_name(shapes: Registry) -> None:
    assert shapes.build(dict(type=Square, side=2), 'here').side == 2


def test_what_is_built_already_passes(shapes: Registry) -> None:
    square = Square()
    assert shapes.build(square, 'here') is square


def test_defaults_fill_what_the_config_leaves_out(shapes: Registry) -> None:
    defaults = dict(type='Square', side=5, colour='blue')
    built = shapes.build(dict(colour='green'), 'here', defaults)
    assert (built.side, built.colour) == (5, 'green')
    assert defaults == dict(type='Square', side=5, colour='blue')


def test_the_config_is_left_as_it_was(shapes: Registry) -> None:
    cfg = dict(type='Square', side=2)
    shapes.build(cfg, 'here')
    assert cfg == dict(type='Square', side=2)


def test_a_mapping_that_is_no_dict_is_a_config(shapes: Registry) -> None:
    from types import MappingProxyType

    assert shapes.build(MappingProxyType(dict(type='Square', side=4)), 'here').side == 4


def test_register_is_a_decorator_with_or_without_a_name() -> None:
    table = Registry('rule')

    @table.register
    def first() -> int:
        return 1

    @table.register(name='second')
    def other() -> int:
        return 2

    assert sorted(table) == ['first', 'second'] and len(table) == 2
    assert first() == 1 and other() == 2
    assert 'second' in table and 'other' not in table
    assert table.get('second', 'here')() == 2


def test_registering_the_same_thing_twice_is_no_mistake(shapes: Registry) -> None:
    assert shapes.register(Square) is Square
    assert len(shapes) == 1


def test_another_thing_under_a_taken_name_is_refused(shapes: Registry) -> None:
    with pytest.raises(ConfigError, match="shape 'Square' is registered already"):
        shapes.register(SimpleNamespace, name='Square')
    assert shapes.get('Square', 'here') is Square


def test_arguments_that_fit_pass() -> None:
    check_arguments(Square, dict(side=1), 'here')


def test_catch_all_parameters_are_no_arguments() -> None:
    def loose(side: int, *args: int, **kwargs: int) -> None: ...

    with pytest.raises(ConfigError, match="here: loose takes no 'colour'. It has: side."):
        check_arguments(loose, dict(side=1, colour=2), 'here')


def test_an_unknown_attribute_of_the_module_is_an_attribute_error() -> None:
    import densekd.registry

    with pytest.raises(AttributeError, match="'densekd.registry' has no attribute 'NOTHING'"):
        _ = densekd.registry.NOTHING


def test_the_tables_need_neither_torch_nor_mmengine() -> None:
    code = (
        'import sys\n'
        'sys.modules.update({name: None for name in ("torch", "mmengine", "mmcv")})\n'
        'from densekd import registry\n'
        'assert registry.LOSSES.kind == "loss"\n'
        'try:\n'
        '    registry.MODELS\n'
        'except ImportError:\n'
        '    print("lazy")\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'lazy'


def test_the_models_of_the_toolboxes_are_reached_through_it() -> None:
    pytest.importorskip('mmengine')
    from densekd import registry
    from densekd.engine import registry as engine

    assert registry.MODELS is engine.MODELS
    assert registry.MODELS.scope == 'densekd'
