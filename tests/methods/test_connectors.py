"""Connectors: channels, starting values, and the teacher's part that must leave no trace."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

from densekd.core.head import Connector, DistillationHead
from densekd.core.taps import Place, Tap
from densekd.errors import ConfigError, ShapeError, TapError
from densekd.methods import (
    ATDistillationHead,
    BNConnector,
    ConvConnector,
    FGFIDistillationHead,
    IdentityConnector,
    LinearConnector,
    OFDDistillationHead,
    PKDDistillationHead,
    TeacherModule,
)
from densekd.registry import HEADS, LOSSES
from tests.methods.samples import sample


def place(channels: int, name: str = 'neck.p3', model: nn.Module | None = None) -> Place:
    return Place(Tap(name, name=name), ((1, channels, 4, 5),), ((8.0, 8.0),), model=model)


def bound(connector: Connector, own: int = 4, other: int = 8) -> Connector:
    connector.bind(place(own), place(other, 'backbone.c4'))
    return connector


@pytest.mark.parametrize('kind', [BNConnector, ConvConnector])
def test_channels_come_from_the_places(kind: type[Connector]) -> None:
    assert bound(kind())(torch.randn(2, 4, 3, 7)).shape == (2, 8, 3, 7)
    assert bound(kind(in_channel=4, out_channel=8))(torch.randn(2, 4, 3, 7)).shape == (2, 8, 3, 7)
    assert bound(LinearConnector())(torch.randn(2, 4)).shape == (2, 8)
    assert bound(LinearConnector(out_channel=3))(torch.randn(2, 4)).shape == (2, 3)


@pytest.mark.parametrize('kind', [BNConnector, ConvConnector])
def test_channels_that_do_not_fit_are_refused(kind: type[Connector]) -> None:
    message = "in_channel=5 was given, but tap 'neck.p3' has 4 channels"
    with pytest.raises(ShapeError, match=message):
        bound(kind(in_channel=5))
    message = "out_channel=5 was given, but tap 'backbone.c4' has 8 channels"
    with pytest.raises(ShapeError, match=message):
        bound(kind(out_channel=5))
    with pytest.raises(ShapeError, match='in_channel=5'):
        bound(LinearConnector(in_channel=5))


def test_an_unbound_connector_says_so() -> None:
    with pytest.raises(ConfigError, match='both in_channel and out_channel'):
        BNConnector(in_channel=4)(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize('kind', [BNConnector, ConvConnector, LinearConnector])
def test_building_from_a_config_draws_no_random_number(kind: type[Connector]) -> None:
    before = torch.random.get_rng_state()
    connector = kind(in_channel=4, out_channel=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    # And binding is as the caller has seeded it, whatever the config states.
    weights = []
    for one in (connector, kind()):
        torch.manual_seed(3)
        weights.append(next(bound(one).parameters()))
    assert torch.equal(*weights)


def test_bn_connector_starts_as_published() -> None:
    torch.manual_seed(0)
    layers = bound(BNConnector(), own=512, other=64).layers
    assert layers.conv.kernel_size == (1, 1) and layers.conv.bias is None
    assert layers.conv.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)
    assert layers.norm.weight.tolist() == [1.0] * 64 and layers.norm.bias.tolist() == [0.0] * 64
    assert len(layers) == 2
    # It is there for equal channels too.
    assert bound(BNConnector(), 8, 8).layers.conv.weight.shape == (8, 8, 1, 1)


def test_conv_connector_options() -> None:
    layers = bound(ConvConnector(kernel_size=3, norm='BN', act='relu')).layers
    assert list(dict(layers.named_children())) == ['conv', 'norm', 'act']
    assert layers.conv.bias is None and layers.conv.padding == (1, 1)
    assert bound(ConvConnector()).layers.conv.bias is not None
    assert bound(ConvConnector(bias=False)).layers.conv.bias is None
    with pytest.raises(ConfigError, match='must be odd'):
        ConvConnector(kernel_size=4)
    with pytest.raises(ConfigError, match="no act 'relv'. Did you mean 'relu'"):
        ConvConnector(act='relv')
    with pytest.raises(ConfigError, match="no norm 'IN'"):
        ConvConnector(norm='IN')


def test_fgfi_connector_starts_near_zero_and_reaches_negative_values() -> None:
    head = FGFIDistillationHead()
    head.stu_connector.bind(place(16), place(16))
    layers = head.stu_connector.layers
    assert list(dict(layers.named_children())) == ['conv']
    assert layers.conv.kernel_size == (3, 3) and not layers.conv.bias.any()
    assert layers.conv.weight.abs().max() <= 2e-4
    # Cut at two deviations, a normal keeps 0.88 of its own.
    assert layers.conv.weight.std().item() == pytest.approx(0.88e-4, rel=0.05)


def test_a_connector_only_where_it_is_needed() -> None:
    for own, other, count in ((8, 8, 0), (4, 8, 1)):
        head = PKDDistillationHead()
        head.bind(place(own), place(other))
        assert len(list(head.parameters())) == count
        value = head(torch.randn(2, own, 3, 4), torch.randn(2, other, 3, 4))
        assert bool(value.isfinite())


def test_each_level_of_a_list_has_its_own() -> None:
    head = FGFIDistillationHead()
    shapes = ((1, 4, 4, 4), (1, 6, 2, 2))
    own = Place(Tap('a', name='a'), shapes, ((8.0, 8.0), (16.0, 16.0)))
    head.bind(own, own)
    sizes = [p.shape[:2] for p in head.parameters() if p.dim() == 4]
    assert sizes == [(4, 4), (6, 6)]


# None at all

OWN = [name for name in sorted(HEADS) if name != 'DistillationHead']


def built(name: str, connector: object) -> DistillationHead:
    """Returns a head with a connector in the place of each that it has by itself."""
    kind = HEADS.get(name, 'here')
    sides = ['stu_connector']
    if kind.default_tea_connector is not None:
        sides.append('tea_connector')
    loss = kind.default_loss
    if 'untrained' in inspect.signature(LOSSES.get(loss['type'], 'here')).parameters:
        loss = {**loss, 'untrained': True}
    cfg = {'type': name, 'loss': loss, **dict.fromkeys(sides, connector)}
    return HEADS.build(cfg, 'here')


@pytest.mark.parametrize('connector', ['IdentityConnector', {'type': 'IdentityConnector'}])
@pytest.mark.parametrize('name', OWN)
def test_the_identity_switches_a_heads_connector_off(name: str, connector: object) -> None:
    bare = built(name, connector)
    assert type(bare.stu_connector) is IdentityConnector
    given = sample(bare.loss)
    bare.bind(*given.places)
    bare.eval()  # without dropout
    assert not bare.stu_connector.state_dict()
    alone = DistillationHead(loss=bare.loss)
    student = given.student if bare.reads_student else given.teacher
    values = student, given.teacher, given.batch
    torch.testing.assert_close(bare(*values), alone.loss(*values))


@pytest.mark.parametrize('name', OWN)
@pytest.mark.parametrize('side', ['stu_connector', 'tea_connector'])
def test_the_identity_is_refused_between_channels_that_are_compared(name: str, side: str) -> None:
    head = built(name, 'IdentityConnector')
    if side == 'tea_connector':
        head.stu_connector, head.tea_connector = None, head.stu_connector
    places = sample(head.loss, wider=2).places
    own, other = (p.channels for p in places)
    # Gradients with respect to the image have its channels, whatever is tapped.
    if not head.loss.compares_channels or own == other:
        head.bind(*places)
        return
    message = f'{name}: IdentityConnector leaves the student {own} channels at .sample. and the '
    with pytest.raises(ShapeError, match=f'{message}teacher {other} .*ConvConnector'):
        head.bind(*places)


def test_the_identity_is_refused_at_any_level_and_for_any_teacher() -> None:
    shapes = [((1, 4, 8, 8), (1, last, 4, 4)) for last in (4, 6)]
    first, second = (Place(Tap('a', name='a'), s, ((8.0, 8.0), (16.0, 16.0))) for s in shapes)
    with pytest.raises(ShapeError, match='student 4 .* teacher 6'):
        FGFIDistillationHead(stu_connector='IdentityConnector').bind(first, second)
    FGFIDistillationHead(stu_connector='IdentityConnector').bind(first, first)
    with pytest.raises(ShapeError, match='student 4 .* teacher 6'):
        DistillationHead(loss='KDLoss', stu_connector='IdentityConnector').bind(place(4), second)


def test_the_identity_beside_a_connector_that_changes_channels() -> None:
    head = PKDDistillationHead(tea_connector='IdentityConnector')
    head.bind(place(4), place(8))
    assert bool(head(torch.randn(2, 4, 3, 4), torch.randn(2, 8, 3, 4)).isfinite())
    unlike = ATDistillationHead(stu_connector='IdentityConnector')
    assert bool(unlike(torch.randn(2, 4, 3, 4), torch.randn(2, 8, 3, 4)).isfinite())


# A part of the teacher


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1))
        self.requires_grad_(False)
        self.eval()


def test_teacher_module_runs_in_the_graph_and_leaves_no_trace() -> None:
    teacher = Teacher()
    connector = TeacherModule('head')
    connector.bind(place(4), place(4, model=teacher))
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = connector(x)
    torch.testing.assert_close(out, teacher.head(x))
    out.sum().backward()
    assert bool(x.grad.any())
    assert all(p.grad is None for p in teacher.parameters())
    assert not connector.state_dict() and not list(connector.parameters())
    assert len(list(connector.modules())) == 1
    connector.train()
    assert not teacher.head.training


def test_teacher_module_is_not_copied_with_its_connector() -> None:
    teacher = Teacher()
    connector = TeacherModule('head')
    connector.bind(place(4), place(4, model=teacher))
    assert copy.deepcopy(connector)._teacher.model is teacher


def test_teacher_module_on_either_side_and_in_parts() -> None:
    teacher = Teacher()
    x = torch.randn(2, 4, 3, 3)
    last: Tensor = teacher.head(x)
    connector = TeacherModule(['head.0', 'head.1', 'head.2'], side='teacher')
    connector.bind(place(4, model=teacher), place(4, model=nn.Identity()))
    torch.testing.assert_close(connector(x), last)
    # Found anew at every call: a converted part is the one that runs.
    teacher.head[2] = nn.Identity()
    assert connector(x).shape == (2, 4, 3, 3)


def test_teacher_module_without_a_teacher() -> None:
    with pytest.raises(ConfigError, match="'student' or 'teacher'"):
        TeacherModule('head', side='tea')
    with pytest.raises(ConfigError, match='has not been taken'):
        TeacherModule('head')(torch.zeros(1))
    with pytest.raises(ConfigError, match='bound without one'):
        TeacherModule('head').bind(place(4), place(4))
    with pytest.raises(TapError, match="has no place 'haed'. Did you mean 'head'"):
        TeacherModule('haed').bind(place(4), place(4, model=Teacher()))


def test_a_head_keeps_what_a_config_states() -> None:
    connector = {'type': 'BNConnector', 'in_channel': 4, 'out_channel': 8}
    head = OFDDistillationHead(loss={'margin': 'empirical'}, stu_connector=connector)
    head.bind(place(4), place(8))
    assert head.loss.loss_weight == 1e-3
    with pytest.raises(ShapeError, match='in_channel=4'):
        head.bind(place(5), place(8))
