"""What is read at the end of mmdet's residual blocks, which write over their own tensors.

A block adds the shortcut into its norm's output in place, and its ReLU overwrites the sum. What a
hook that keeps a reference sees in the end is therefore not what the module returned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd.core.taps import Tap, Taps
from densekd.errors import TapError
from densekd.wrappers.named_taps import backbone_taps

resnet = pytest.importorskip('mmdet.models.backbones.resnet')


def block(kind: str, inplace: bool) -> nn.Module:
    """Returns a block in training, its norms of any sign, so that sums have negatives."""
    torch.manual_seed(0)
    made = resnet.Bottleneck(16, 4) if kind == 'Bottleneck' else resnet.BasicBlock(16, 16)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.ReLU):
            module.inplace = inplace
    return made.train()


def by_hand(made: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the last norm's output and the sum with the shortcut, without writing anywhere."""
    out = x
    layers = ['1', '2', '3'] if hasattr(made, 'conv3') else ['1', '2']
    for i in layers:
        out = getattr(made, f'norm{i}')(getattr(made, f'conv{i}')(out))
        if i != layers[-1]:
            out = out.clamp(min=0)
    return out, out + x


def last_norm(kind: str) -> str:
    return 'bn3' if kind == 'Bottleneck' else 'bn2'


def image() -> Tensor:
    return torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(1), requires_grad=True)


blocks = pytest.mark.parametrize('kind', ['Bottleneck', 'BasicBlock'])
flags = pytest.mark.parametrize('inplace', [True, False])


def read(made: nn.Module, tap: Tap, x: Tensor) -> tuple[Tensor, Tensor]:
    with Taps(made, {'a': tap}) as taps:
        out = made(x)
    return taps['a'], out


@blocks
@flags
def test_the_norm_with_a_copy_is_the_norms_own_output(kind: str, inplace: bool) -> None:
    made, x = block(kind, inplace), image()
    value, _ = read(made, Tap(last_norm(kind)), x)
    norm, total = by_hand(made, x)
    torch.testing.assert_close(value, norm)
    assert not torch.allclose(value, total)


@blocks
@flags
def test_the_norm_by_reference_is_refused(kind: str, inplace: bool) -> None:
    # Even without an in-place ReLU the block adds the shortcut into the tensor.
    with pytest.raises(TapError, match='an in-place operation wrote to the tensor'):
        read(block(kind, inplace), Tap(last_norm(kind), copy=False), image())


@blocks
@flags
def test_what_a_kept_reference_would_see(kind: str, inplace: bool) -> None:
    # The reason for the two tests above: torch alone, without taps.
    made, x, kept = block(kind, inplace), image(), []
    made.get_submodule(last_norm(kind)).register_forward_hook(lambda m, a, out: kept.append(out))
    out = made(x)
    norm, total = by_hand(made, x)
    wanted = out if inplace else total
    torch.testing.assert_close(kept[0], wanted)
    assert not torch.allclose(kept[0], norm)


@blocks
@flags
def test_the_input_of_the_last_relu_with_a_copy_is_the_sum(kind: str, inplace: bool) -> None:
    made, x = block(kind, inplace), image()
    value, out = read(made, Tap('relu', side='in'), x)
    _, total = by_hand(made, x)
    torch.testing.assert_close(value, total)
    assert (value < 0).any() and (out >= 0).all()
    torch.testing.assert_close(value.clamp(min=0), out)


@blocks
@flags
def test_the_input_of_the_last_relu_by_reference(kind: str, inplace: bool) -> None:
    made, x = block(kind, inplace), image()
    tap = Tap('relu', side='in', copy=False)
    if inplace:
        with pytest.raises(TapError, match='Leave out copy=False'):
            read(made, tap, x)
    else:
        torch.testing.assert_close(read(made, tap, x)[0], by_hand(made, x)[1])


@blocks
def test_the_one_relu_runs_several_times(kind: str) -> None:
    made, x = block(kind, True), image()
    value, _ = read(made, Tap('relu', side='in', call='all'), x)
    assert len(value) == (3 if kind == 'Bottleneck' else 2)
    # The first call is at another place, of other channels in a bottleneck.
    first, _ = read(made, Tap('relu', side='in', call=0), x)
    torch.testing.assert_close(first, made.norm1(made.conv1(x)))


@blocks
@pytest.mark.parametrize('place', ['sum', 'norm'])
def test_the_gradient_is_that_of_a_network_that_writes_nowhere(kind: str, place: str) -> None:
    made = block(kind, True)
    twin, x, y = copy.deepcopy(made), image(), image()
    tap = Tap('relu', side='in') if place == 'sum' else Tap(last_norm(kind))
    value, out = read(made, tap, x)
    # The block's own output takes part, as the student's loss does.
    (value.square().sum() + out.sum()).backward()
    norm, total = by_hand(twin, y)
    wanted = total if place == 'sum' else norm
    (wanted.square().sum() + total.clamp(min=0).sum()).backward()
    torch.testing.assert_close(x.grad, y.grad)
    for (name, p), q in zip(made.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


# In a whole network -----------------------------------------------------------------------------


def network(depth: int, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    config: dict[str, Any] = dict(base_channels=8, frozen_stages=-1, norm_eval=False)
    model = nn.Module()
    model.backbone = resnet.ResNet(depth, **{**config, **more})
    model.backbone.train()
    return model


def run(model: nn.Module, tap: str, x: Tensor, **how: Any) -> tuple[Any, Taps, Any]:
    named = backbone_taps(model)
    with Taps(model, {'a': named.get(tap) or Tap(tap)}, **how) as taps:
        out = model.backbone(x)
    return taps['a'], taps, out


def photo(size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))


deep = pytest.mark.parametrize('depth', [18, 50])


@deep
def test_pre_relu_is_the_sum_at_the_end_of_the_stage(depth: int) -> None:
    model, x = network(depth), photo()
    last = model.backbone.layer3[-1]
    with Taps(last, {'x': Tap('conv1', side='in')}) as entry:
        value, _, _ = run(model, 'backbone.c4.pre_relu', x)
    torch.testing.assert_close(value, by_hand(last, entry['x'])[1])
    after, _, _ = run(model, 'backbone.c4', x)
    torch.testing.assert_close(value.clamp(min=0), after)
    assert (value < 0).any()


@deep
def test_pre_relu_has_the_gradient_of_a_network_that_writes_nowhere(depth: int) -> None:
    grads = []
    for inplace in (True, False):
        model = network(depth)
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = inplace
        value, _, _ = run(model, 'backbone.c5.pre_relu', photo(), student=True)
        value.square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 50
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], msg=name)


@deep
def test_a_checkpointed_block_is_tapped_at_its_end_and_not_inside(depth: int) -> None:
    model, x = network(depth, with_cp=True), photo().requires_grad_()
    norm = 'bn3' if depth == 50 else 'bn2'
    inside = f'backbone.layer3.1.{norm}'
    with pytest.raises(TapError, match='inside activation checkpointing'):
        run(model, inside, x, student=True)
    value, taps, _ = run(model, 'backbone.c4.pre_relu', x, student=True)
    count = dict(taps.calls)
    value.square().mean().backward()
    assert taps.calls == count  # the recomputation was not recorded
    plain = network(depth)
    wanted, _, _ = run(plain, 'backbone.c4.pre_relu', photo(), student=True)
    torch.testing.assert_close(value, wanted)
    wanted.square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_teacher_may_be_tapped_inside_a_checkpointed_block() -> None:
    model = network(18, with_cp=True)
    with torch.no_grad():
        value, _, _ = run(model, 'backbone.layer3.1.bn2', photo())
    assert value.shape == (2, 32, 4, 6)


def test_a_frozen_stage_is_refused_for_a_student() -> None:
    model = network(18, frozen_stages=1)
    with pytest.raises(TapError, match="tap 'backbone.c2': no gradient reaches the student"):
        run(model, 'backbone.c2', photo(), student=True)
    with pytest.raises(TapError, match="tap 'backbone.c2.pre_relu': no gradient"):
        run(model, 'backbone.c2.pre_relu', photo(), student=True)
    value, _, _ = run(model, 'backbone.c3.pre_relu', photo(), student=True)
    assert value.requires_grad


def test_taps_made_before_sync_bn_was_reverted_fire() -> None:
    from mmengine.model import revert_sync_batchnorm

    model = network(18, norm_cfg=dict(type='SyncBN', requires_grad=True))
    old = model.backbone.layer3[-1].bn2
    taps = Taps(
        model,
        {'norm': Tap('backbone.layer3.1.bn2'), 'sum': backbone_taps(model)['backbone.c4.pre_relu']},
    )
    model = revert_sync_batchnorm(model)
    assert model.backbone.layer3[-1].bn2 is not old
    with taps:
        model.backbone(photo())
    assert taps['norm'].shape == taps['sum'].shape == (2, 32, 4, 6)


def test_a_deep_copy_of_the_network_fires_no_tap_of_the_original() -> None:
    model = network(18)
    _, taps, _ = run(model, 'backbone.c4', photo())
    copy.deepcopy(model).backbone(photo())
    assert taps.calls == {'a': 1}


def counted(model: nn.Module) -> Callable[[], dict[str, int]]:
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(*unused: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    for name, module in model.backbone.named_children():
        module.register_forward_hook(count(name))
    return lambda: calls


@pytest.mark.parametrize('tap', ['backbone.c3', 'backbone.c3.pre_relu'])
def test_stages_beyond_the_deepest_tap_do_not_run(tap: str) -> None:
    model = network(50).eval()
    with torch.no_grad():
        whole, taps, _ = run(model, tap, photo())
        calls = counted(model)
        named = backbone_taps(model)
        with Taps(model, {'a': named[tap]}, calls=taps.calls) as early:
            model.backbone(photo())
    assert calls().get('layer1') == 1
    assert 'layer3' not in calls() and 'layer4' not in calls()
    assert torch.equal(early['a'], whole)


def test_a_conv_modules_norm_is_copied_before_its_activation() -> None:
    from mmcv.cnn import ConvModule

    torch.manual_seed(0)
    module = ConvModule(3, 4, 1, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
    assert module.activate.inplace
    x = torch.randn(2, 3, 4, 4)
    with Taps(module, {'a': Tap('bn')}) as taps:
        out = module(x)
    assert (taps['a'] < 0).any()
    torch.testing.assert_close(taps['a'].clamp(min=0), out)
    with (
        pytest.raises(TapError, match='in-place'),
        Taps(module, {'a': Tap('bn', copy=False)}) as taps,
    ):
        module(x)
        taps['a']


def test_a_shared_head_runs_once_a_level() -> None:
    from mmdet.models.dense_heads import RetinaHead
    from mmengine.registry import DefaultScope

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = RetinaHead(3, 8, stacked_convs=1, feat_channels=8)
    levels = [torch.randn(1, 8, s, s + 1) for s in (8, 4, 2, 2, 2)]
    with Taps(head, {'all': Tap('retina_cls', call='all'), 'last': Tap('retina_cls')}) as taps:
        scores, _ = head(levels)
    assert taps.calls == {'all': 5, 'last': 5}
    assert all(torch.equal(a, b) for a, b in zip(taps['all'], scores, strict=True))
    assert torch.equal(taps['last'], scores[-1])
