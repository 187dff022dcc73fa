"""Taps on small networks: which tensor, which call, when, and what is left behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densekd.core.taps import Tap, Taps, parse_tap, resolve, tensors
from densekd.errors import ConfigError, TapError


class Counted(nn.Module):
    """Counts its calls, and hands its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 1


class Shared(nn.Module):
    """One module that runs three times, as the ReLU of a bottleneck does."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for shift in (0.0, 10.0, 20.0):
            x = self.relu(x * 1 + shift)
        return x


class Pyramid(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, x[..., ::2], x[..., ::4]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def read(model: nn.Module, x: Tensor, tap: Tap, **more: Any) -> Any:
    with Taps(model, {'a': tap}, **more) as taps:
        model(x)
    return taps['a']


X = torch.tensor([[-1.0, 2.0]])


# Which tensor -----------------------------------------------------------------------------------


def test_out_is_what_the_module_returns_and_in_what_it_gets() -> None:
    net = nn.Sequential(nn.Identity(), nn.ReLU())
    assert read(net, X, Tap('1')).tolist() == [[0.0, 2.0]]
    assert read(net, X, Tap('1', side='in')).tolist() == [[-1.0, 2.0]]
    assert read(net, X, Tap('')).tolist() == [[0.0, 2.0]]


def test_the_tapped_tensor_is_in_the_graph() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    read(net, X, Tap('0')).sum().backward()
    assert net[0].weight.grad is not None


@pytest.mark.parametrize('side', ['out', 'in'])
def test_a_copy_is_not_changed_by_what_writes_to_the_tensor(side: str) -> None:
    net = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    path = '0' if side == 'out' else '1'
    assert read(net, X.clone(), Tap(path, side=side)).tolist() == [[-1.0, 2.0]]
    with pytest.raises(TapError, match='an in-place operation wrote to the tensor'):
        read(net, X.clone(), Tap(path, side=side, copy=False))


def test_without_a_copy_the_tensor_itself_is_read() -> None:
    net = nn.Sequential(nn.Identity(), nn.ReLU())
    x = X.clone()
    assert read(net, x, Tap('0', copy=False)) is x
    assert read(net, x, Tap('0')) is not x


def test_a_write_after_the_block_is_found_too() -> None:
    net = nn.Sequential(nn.Identity(), nn.ReLU())
    x = X.clone()
    with Taps(net, {'a': Tap('0', copy=False)}) as taps:
        net(x)
    assert taps['a'] is x
    x.add_(1)
    with pytest.raises(TapError, match='in-place'):
        taps['a']


def test_a_pyramid_is_a_list_or_one_of_its_levels() -> None:
    x = torch.randn(1, 2, 4, 8)
    levels = read(Pyramid(), x, Tap('', name='neck'))
    assert [t.shape[-1] for t in levels] == [8, 4, 2]
    assert read(Pyramid(), x, Tap('', name='neck', index=1)).shape[-1] == 4
    assert read(Pyramid(), x, Tap('', name='neck', index=-1)).shape[-1] == 2


def test_a_list_of_one_is_a_tensor_and_one_level_that_is_a_list_stays_one() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return [x]

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return [x, x], [x + 1]

    assert isinstance(read(Single(), X, Tap('', name='a')), Tensor)
    assert len(read(Pair(), X, Tap('', name='a'))) == 3
    assert len(read(Pair(), X, Tap('', name='a', index=0))) == 2
    assert isinstance(read(Pair(), X, Tap('', name='a', index=1)), list)


def test_a_dict_of_tensors_is_a_list() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {'low': x, 'high': x + 1, 'name': 'text'}

    assert [t.tolist() for t in read(Named(), X, Tap('', name='a'))] == [
        [[-1.0, 2.0]],
        [[0.0, 3.0]],
    ]


def test_tensors_flattens() -> None:
    assert tensors(X) == [X]
    assert tensors([X, (X, {'a': X}), 'text', None]) == [X, X, X]


# Which call -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('call', 'wanted'), [(-1, 31.0), (0, 1.0), (1, 11.0), (2, 31.0), (-2, 11.0), (-3, 1.0)]
)
@pytest.mark.parametrize('known', [None, {'a': 3}])
def test_one_call_of_several(call: int, wanted: float, known: Any) -> None:
    tap = Tap('relu', side='in', call=call)
    x = torch.ones(1)
    # The third input is 1 + 0, then + 10, then + 20.
    assert read(Shared(), x, tap, calls=known).item() == wanted


def test_all_calls_are_a_list_in_order() -> None:
    value = read(Shared(), torch.ones(1), Tap('relu', side='in', call='all'))
    assert [t.item() for t in value] == [1.0, 11.0, 31.0]


def test_all_calls_of_a_module_with_several_outputs_are_one_list() -> None:
    pyramid = Pyramid()
    net = nn.Sequential(pyramid)
    with Taps(net, {'a': Tap('0', call='all')}) as taps:
        net(torch.zeros(1, 1, 1, 4))
        net(torch.zeros(1, 1, 1, 8))
    assert [t.shape[-1] for t in taps['a']] == [4, 2, 1, 8, 4, 2]


def test_calls_are_counted() -> None:
    net = Shared()
    with Taps(net, {'a': Tap('relu'), 'b': Tap('', name='whole')}) as taps:
        net(torch.ones(1))
    assert taps.calls == {'a': 3, 'b': 1}


def test_only_the_calls_that_can_be_wanted_are_held() -> None:
    net = Shared()
    for tap, known, held in [
        (Tap('relu', call=-1), None, 1),
        (Tap('relu', call=0), None, 1),
        (Tap('relu', call=-1), {'a': 3}, 1),
        (Tap('relu', call='all'), None, 3),
    ]:
        with Taps(net, {'a': tap}, calls=known) as taps:
            net(torch.ones(1))
        assert sum(value is not None for value in taps._seen['a']) == held


@pytest.mark.parametrize('call', [3, -4])
def test_a_call_that_is_not_made_is_an_error(call: int) -> None:
    with pytest.raises(TapError, match=f'call {call} was asked for, but the module ran 3 times'):
        read(Shared(), torch.ones(1), Tap('relu', call=call))


def test_a_copy_of_one_call_is_checked_against_its_own_version() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            self.part(x * 1).add_(1)
            return self.part(x * 2)

    assert read(Twice(), X, Tap('part', copy=False)).tolist() == [[-2.0, 4.0]]
    with pytest.raises(TapError, match='in-place'):
        read(Twice(), X, Tap('part', copy=False, call='all'))
    with pytest.raises(TapError, match='in-place'):
        read(Twice(), X, Tap('part', copy=False, call=0))


# When it is resolved, and what is left ----------------------------------------------------------


def test_a_module_that_was_replaced_later_is_the_one_that_is_read() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    taps = Taps(net, {'a': Tap('0')})
    net[0] = nn.Linear(2, 5)
    with taps:
        net[0](X)
    assert taps['a'].shape == (1, 5)


def test_hooks_live_in_the_block_only() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with Taps(net, {'a': Tap('0'), 'b': Tap('1', side='in')}) as taps:
        assert hooks(net) == 2
        net(X)
    assert hooks(net) == 0
    first = taps['a']
    net(X + 1)
    assert taps['a'] is first and taps.calls == {'a': 1, 'b': 1}


def test_hooks_are_gone_after_an_error_in_the_network() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    net = nn.Sequential(nn.Linear(2, 2), Broken())
    with pytest.raises(ZeroDivisionError), Taps(net, {'a': Tap('0')}) as taps:
        net(X)
    assert hooks(net) == 0
    assert taps._seen == {}  # nothing holds the graph of a step that failed


def test_hooks_are_gone_when_a_later_tap_does_not_exist() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(TapError), Taps(net, {'a': Tap('0'), 'b': Tap('missing')}):
        pass
    assert hooks(net) == 0


def test_hooks_of_others_stay() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_forward_hook(lambda *_: None)
    with Taps(net, {'a': Tap('0')}):
        net(X)
    assert hooks(net) == 1


def test_a_deep_copy_does_not_fire_the_original() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with Taps(net, {'a': Tap('0')}) as taps:
        net(X)
    twin = copy.deepcopy(net)
    before = taps['a'].clone()
    twin(X + 5)
    assert taps.calls == {'a': 1} and torch.equal(taps['a'], before)
    assert hooks(twin) == 0


def test_a_block_can_be_entered_again() -> None:
    net = nn.Sequential(nn.Identity())
    taps = Taps(net, {'a': Tap('0', call='all')})
    for shift in (0, 1):
        with taps:
            net(X + shift)
        assert [t.tolist() for t in taps['a']] == [(X + shift).tolist()]


# Early exit -------------------------------------------------------------------------------------


def deep() -> nn.Sequential:
    return nn.Sequential(*(Counted() for _ in range(5)))


def test_nothing_runs_beyond_the_deepest_tap() -> None:
    net = deep()
    taps = {'a': Tap('1'), 'b': Tap('2')}
    with Taps(net, taps, calls={'a': 1, 'b': 1}) as reading:
        net(X)
    assert [m.calls for m in net] == [1, 1, 1, 0, 0]
    full = deep()
    with Taps(full, taps) as whole:
        full(X)
    assert [m.calls for m in full] == [1, 1, 1, 1, 1]
    assert all(torch.equal(reading[key], whole[key]) for key in taps)


def test_an_input_is_read_without_running_its_module() -> None:
    net = deep()
    with Taps(net, {'a': Tap('3', side='in')}, calls={'a': 1}) as taps:
        net(X)
    assert [m.calls for m in net] == [1, 1, 1, 0, 0]
    assert torch.equal(taps['a'], X + 3)


def test_a_module_is_run_as_often_as_it_is_known_to() -> None:
    shared = Counted()
    net = nn.Sequential(shared, shared, Counted(), shared, Counted())
    with Taps(net, {'a': Tap('0')}, calls={'a': 3}) as taps:
        net(X)
    assert shared.calls == 3 and net[4].calls == 0
    assert torch.equal(taps['a'], X + 4)


def test_what_follows_the_pass_in_the_block_is_left_out() -> None:
    net, reached = deep(), []
    with Taps(net, {'a': Tap('0')}, calls={'a': 1}):
        net(X)
        reached.append(True)
    assert reached == [] and torch.is_grad_enabled()


def test_an_error_before_the_deepest_tap_is_not_swallowed() -> None:
    net = nn.Sequential(nn.Linear(3, 3), Counted())
    with pytest.raises(RuntimeError), Taps(net, {'a': Tap('1')}, calls={'a': 1}):
        net(X)


# What can teach nothing -------------------------------------------------------------------------


def test_a_frozen_place_is_refused_for_a_student_alone() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    assert not read(net, X, Tap('0')).requires_grad
    assert read(net, X, Tap('1'), student=True).requires_grad
    with pytest.raises(TapError, match="tap '0': no gradient reaches the student here"):
        read(net, X, Tap('0'), student=True)


def test_a_student_in_validation_may_have_no_gradient() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        assert not read(net, X, Tap('0'), student=True).requires_grad


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.end = nn.ReLU(inplace=True)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.end(checkpoint(self.inner, x, use_reentrant=self.reentrant))


def test_a_place_inside_activation_checkpointing_is_refused_and_its_end_is_not() -> None:
    net, x = Checkpointed(True), X.clone().requires_grad_()
    with pytest.raises(TapError, match=r"'inner': the place is inside activation checkpointing"):
        read(net, x, Tap('inner'), student=True)
    value = read(net, x, Tap('end', side='in'), student=True)
    value.sum().backward()
    assert net.inner.weight.grad is not None


def test_checkpointing_that_records_a_gradient_may_be_tapped_inside() -> None:
    net, x = Checkpointed(False), X.clone().requires_grad_()
    value = read(net, x, Tap('inner'), student=True)
    (value.sum() + net(x).sum() * 0).backward()
    torch.testing.assert_close(net.inner.weight.grad, x.detach().expand(2, 2))


def test_recomputation_in_backward_records_nothing() -> None:
    net, x = Checkpointed(True), X.clone().requires_grad_()
    with Taps(net, {'a': Tap('inner')}) as taps:
        out = net(x)
    out.sum().backward()
    assert taps.calls == {'a': 1}


# Names ------------------------------------------------------------------------------------------


def test_a_misspelt_place_names_its_neighbours() -> None:
    net = nn.ModuleDict({'backbone': nn.ModuleDict({'layer1': nn.ReLU(), 'layer2': nn.ReLU()})})
    named = ['backbone.c2', 'backbone.c2.pre_relu', 'neck.p3']
    for written, near in [
        ('backbone.layr1', "'backbone.layer1'"),
        ('backbone.c9', "'backbone.c2'"),
        ('backbone.c2.pre_rel', "'backbone.c2.pre_relu'"),
        ('bakbone.layer1', "'backbone.layer1'"),
        ('nek.p3', "'neck.p3'"),
    ]:
        with pytest.raises(TapError) as caught:
            resolve(net, Tap(written, name=written), 'here', named)
        message = str(caught.value)
        assert message.startswith(f"here: ModuleDict has no place '{written}'. Did you mean {near}")


def test_what_is_listed_is_where_the_path_goes_wrong() -> None:
    net = nn.ModuleDict({'neck': nn.ModuleDict({'convs': nn.ReLU()}), 'head': nn.ReLU()})
    with pytest.raises(TapError, match=r"no place 'neck.xyz'. It has: neck.convs.$"):
        resolve(net, Tap('neck.xyz'))


def test_an_attribute_that_is_no_module_is_no_place() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(TapError, match="no place '0.weight'"):
        resolve(net, Tap('0.weight'))


def test_parsing_prefers_a_named_tap_and_takes_any_path() -> None:
    named = {'neck.p3': Tap('neck', name='neck.p3', level='neck', index=0, copy=False)}
    assert parse_tap('neck.p3', named, 'here') is named['neck.p3']
    assert parse_tap('neck.convs.0', named, 'here') == Tap('neck.convs.0', name='neck.convs.0')
    ready = Tap('a')
    assert parse_tap(ready, named, 'here') is ready


def test_the_long_form_changes_a_named_tap_or_is_a_tap() -> None:
    named = {'neck.p3': Tap('neck', name='neck.p3', level='neck', index=0, copy=False)}
    changed = parse_tap(dict(path='neck.p3', copy=True), named, 'here')
    assert changed == Tap('neck', name='neck.p3', level='neck', index=0, copy=True)
    assert parse_tap(dict(path='relu', side='in', call='all'), named, 'here') == Tap(
        'relu', side='in', call='all'
    )
    with pytest.raises(ConfigError, match="Tap takes no 'sides'"):
        parse_tap(dict(path='relu', sides='in'), named, 'here')
    with pytest.raises(TapError, match=r'here: a tap is a name such as'):
        parse_tap(dict(side='in'), named, 'here')


def test_the_part_is_the_level_or_the_root_of_the_path() -> None:
    assert Tap('neck.convs.0').part == 'neck'
    assert Tap('neck.convs.0', level='head').part == 'head'
    assert Tap('').part == 'model'
    assert Tap('a.b', name='c').label == 'c' and Tap('a.b').label == 'a.b'
