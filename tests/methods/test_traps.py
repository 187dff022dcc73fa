"""Where the plain formula, a framework or a batch would go wrong, method by method.

What every loss has in common is in test_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from densekd.core.batch import Batch
from densekd.core.distiller import Distiller, check_needs
from densekd.core.head import DistillationHead
from densekd.core.taps import Place, Tap
from densekd.errors import ConfigError, DenseKDError, ShapeError, TapError
from densekd.methods import (
    ABDistillationHead,
    ABLoss,
    ATLoss,
    BinaryKLLoss,
    BoundedRegressionLoss,
    CWDDistillationHead,
    CWDLoss,
    FGFIDistillationHead,
    FGFILoss,
    KDDistillationHead,
    KDLoss,
    KDQFLLoss,
    MGDDistillationHead,
    MGDLoss,
    OFDDistillationHead,
    OFDLoss,
    PKDDistillationHead,
    WeightedSoftLabelLoss,
    WeightedSoftObjectnessLoss,
    ab_loss,
    at_loss,
    attention_map,
    binary_kl_loss,
    bounded_regression_loss,
    cwd_loss,
    ensemble_kd_loss,
    hint_loss,
    imitation_loss,
    imitation_mask,
    kd_loss,
    kd_qfl_loss,
    margin_from_bn,
    mgd_loss,
    ofd_loss,
    pkd_loss,
    weighted_soft_label_loss,
    weighted_soft_objectness_loss,
)
from densekd.methods.feature import fgfi
from tests.methods.samples import grid

MARGIN = torch.tensor([-0.5, -1.0, -0.2])
MAP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'hint': hint_loss,
    'ofd': lambda s, t: ofd_loss(s, t, MARGIN),
    'pkd': pkd_loss,
    'at': at_loss,
    'ab': ab_loss,
    'cwd': cwd_loss,
    'mgd': lambda s, t: mgd_loss(s, t, torch.nn.Identity(), torch.ones(len(s), 1, 1, 1)),
    'imitation': lambda s, t: imitation_loss([s], [t], [s.detach()[:, 0] > -9]),
}
ROW_LOSSES = {'kd_qfl': kd_qfl_loss, 'binary_kl': binary_kl_loss}
maps = pytest.mark.parametrize('loss', MAP_LOSSES.values(), ids=MAP_LOSSES.keys())
rows = pytest.mark.parametrize('loss', ROW_LOSSES.values(), ids=ROW_LOSSES.keys())


def place(
    name: str = 'neck.p3',
    shapes: tuple[tuple[int, ...], ...] = ((1, 3, 4, 5),),
    strides: tuple[tuple[float, float] | None, ...] | None = None,
    norm: torch.nn.Module | None = None,
    rectified: bool = False,
) -> Place:
    strides = (None,) * len(shapes) if strides is None else strides
    return Place(Tap(name, name=name, rectified=rectified), shapes, strides, norm)


def pyramid(height: int = 8, width: int = 12) -> dict[tuple[int, int], Tensor]:
    return {
        (8, 8): grid(height, width, 8, [(16, 16), (24, 12)]),
        (16, 16): grid(height // 2, width // 2, 16, [(32, 32), (48, 24)]),
        (32, 32): grid(height // 4, width // 4, 32, [(64, 64), (96, 48)]),
    }


def detection_batch(boxes: list[list[list[float]]], width: int = 12) -> Batch:
    anchors = pyramid(width=width)
    return Batch(
        {
            'gt_boxes': [torch.tensor(b).reshape(-1, 4) for b in boxes],
            'anchors': anchors,
            'anchors_valid': {
                k: torch.ones(len(boxes), *a.shape[:3], dtype=torch.bool)
                for k, a in anchors.items()
            },
        }
    )


BOXES = torch.tensor([[10.0, 8.0, 40.0, 30.0], [50.0, 20.0, 60.0, 33.0], [0.0, 0.0, 90.0, 60.0]])


# All losses on maps


@maps
def test_height_and_width_are_the_same_to_a_loss(loss: Callable[..., Tensor]) -> None:
    s, t = torch.randn(2, 2, 3, 4, 7)
    transposed = loss(s.transpose(2, 3), t.transpose(2, 3))
    torch.testing.assert_close(transposed, loss(s, t))


@maps
@pytest.mark.parametrize('shape', [(2, 4, 4, 5), (2, 1, 4, 5), (2, 3, 1, 5), (1, 3, 4, 5)])
def test_unlike_shapes_are_refused(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    if loss is at_loss and shape[0] == 2 and shape[2] == 4:
        return  # channels are collapsed
    with pytest.raises(ShapeError, match='the student (has|map is)'):
        loss(torch.zeros(2, 3, 4, 5), torch.zeros(shape))


# PKD


def test_pkd_of_single_values_is_an_attached_zero() -> None:
    s = torch.randn(1, 3, 1, 1, requires_grad=True)
    value = pkd_loss(s, torch.randn(1, 3, 1, 1))
    value.backward()
    assert value.item() == 0.0 and not s.grad.any()


def test_pkd_leaves_channels_out_that_are_constant_in_the_teacher() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5)
    t[:, 1] = 5e-6 * torch.randn(2, 4, 5)  # rounding noise, which division would blow up
    s.requires_grad_()
    value = pkd_loss(s, t)
    value.backward()
    keep = [0, 2]
    torch.testing.assert_close(value, pkd_loss(s[:, keep], t[:, keep]) * 2 / 3)
    assert not s.grad[:, 1].any() and bool(s.grad[:, 0].any())


# OFD


def test_ofd_refuses_margins_of_other_channels() -> None:
    with pytest.raises(ShapeError, match='2 margins'):
        ofd_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(2))


def test_ofd_gives_no_gradient_where_both_are_negative() -> None:
    s = torch.tensor([-3.0, -3.0]).reshape(1, 1, 1, 2).requires_grad_()
    ofd_loss(s, torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2), torch.tensor([-2.0])).backward()
    assert s.grad.flatten().tolist() == [0.0, -8.0]


@pytest.mark.parametrize('norm', [torch.nn.BatchNorm2d(3), torch.nn.SyncBatchNorm(3)])
def test_ofd_margins_come_from_the_norm_and_are_saved(norm: torch.nn.Module) -> None:
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    loss = OFDLoss()
    loss.bind(place(), place(norm=norm))
    torch.testing.assert_close(loss.margins(), margin_from_bn(norm.weight, norm.bias))
    assert list(loss.state_dict()) == ['margin']
    plain = OFDLoss()
    plain.bind(place(), place(norm=torch.nn.BatchNorm2d(3, affine=False)))
    assert plain.margins().tolist() == pytest.approx([-0.797885] * 3, abs=1e-6)


@pytest.mark.parametrize('norm', [None, torch.nn.GroupNorm(1, 3), torch.nn.InstanceNorm2d(3)])
def test_ofd_without_batch_norm_proposes_empirical_margins(norm: torch.nn.Module | None) -> None:
    with pytest.raises(ConfigError, match='margin="empirical"'):
        OFDLoss().bind(place(), place(norm=norm))


def test_ofd_behind_a_relu_is_refused() -> None:
    with pytest.raises(TapError, match='comes out of a ReLU'):
        OFDLoss().bind(place(), place('backbone.c3', rectified=True))


def test_ofd_empirical_margins_are_means_over_all_batches() -> None:
    loss = OFDLoss(margin='empirical')
    loss.bind(place(), place(shapes=((1, 2, 2, 2),)))
    first, second = torch.randn(2, 3, 2, 4, 4)
    first[:, 1], second[:, 1] = 1.0, 2.0  # never negative
    loss(torch.zeros(3, 2, 4, 4), first)
    loss(torch.zeros(3, 2, 4, 4), second)
    seen = torch.cat([first, second])[:, 0]
    expected = torch.stack([seen[seen < 0].mean(), torch.tensor(0.0)])
    torch.testing.assert_close(loss.margins(), expected)
    loss.eval()
    loss(torch.zeros(3, 2, 4, 4), first - 100)
    torch.testing.assert_close(loss.margins(), expected)
    copy = OFDLoss(margin='empirical')
    copy.bind(place(), place(shapes=((1, 2, 2, 2),)))
    copy.load_state_dict(loss.state_dict())
    torch.testing.assert_close(copy.margins(), expected)


def test_ofd_empirical_margin_of_a_normal_channel_is_the_closed_form() -> None:
    loss = OFDLoss(margin='empirical')
    loss.bind(place(), place(shapes=((1, 1, 2, 2),)))
    values = torch.randn(4, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    loss(values, values)
    assert loss.margins().item() == pytest.approx(-0.797885, abs=5e-3)


# AT


def test_attention_of_a_map_without_activations_is_finite() -> None:
    s, t = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    s[0], t[1] = 0.0, 0.0
    s.requires_grad_()
    for p in (0.5, 1, 2, 3):
        value = at_loss(s, t, p)
        (gradient,) = torch.autograd.grad(value, s)
        assert bool(gradient.isfinite().all()) and not gradient[0].any()
        # A unit map against nothing: 1/(H*W), whatever it looks like.
        assert value.item() == pytest.approx(1 / 20, rel=1e-5)


def test_features_are_pooled_before_their_attention_is_taken() -> None:
    s, t = torch.randn(2, 3, 4, 6), torch.randn(2, 7, 8, 3)
    pooled = [torch.nn.functional.adaptive_avg_pool2d(x, (4, 3)) for x in (s, t)]
    torch.testing.assert_close(ATLoss()(s, t), at_loss(*pooled))
    torch.testing.assert_close(ATLoss(reference=6)(s, t), 2 * at_loss(*pooled))
    after = [torch.nn.functional.adaptive_avg_pool2d(attention_map(x), (4, 3)) for x in (s, t)]
    unlike = at_loss(*(x[:, None].sqrt() for x in after))
    assert ATLoss()(s, t).item() != pytest.approx(unlike.item(), rel=1e-3)


def test_a_reference_makes_the_loss_blind_to_the_size_of_the_map() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5)
    large = [x.repeat(1, 1, 3, 2) for x in (s, t)]  # six times the cells, like activations
    torch.testing.assert_close(ATLoss(reference=49)(*large), ATLoss(reference=49)(s, t))
    torch.testing.assert_close(ABLoss(reference=49)(*large), ABLoss(reference=49)(s, t))
    torch.testing.assert_close(6 * ATLoss()(*large), ATLoss()(s, t))
    torch.testing.assert_close(ABLoss()(*large), 6 * ABLoss()(s, t))


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'p': 0}, 'p must be positive'), ({'kind': 'mean'}, "no kind 'mean'")],
)
def test_options_of_attention_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        at_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), **options)
    with pytest.raises(ConfigError, match=message):
        ATLoss(**options)
    for loss in (ATLoss, ABLoss):
        with pytest.raises(ConfigError, match='reference is a number of cells'):
            loss(reference=0)


def test_attention_needs_maps() -> None:
    with pytest.raises(ShapeError, match=r'\(N, C, H, W\)'):
        attention_map(torch.zeros(2, 3))


# AB


def test_boundaries_give_no_gradient_beyond_the_margin() -> None:
    s = torch.tensor([1.5, 0.5, -1.5, -0.5]).reshape(1, 1, 1, 4).requires_grad_()
    ab_loss(s, torch.tensor([1.0, 1.0, -1.0, 0.0]).reshape(1, 1, 1, 4)).backward()
    assert s.grad.flatten().tolist() == [0.0, -1.0, 0.0, 1.0]


def test_ab_refuses_a_student_behind_a_relu_and_takes_a_teacher_there() -> None:
    ABLoss().bind(place(), place('backbone.c3', rectified=True))
    with pytest.raises(TapError, match='comes out of a ReLU.*"backbone.c3.pre_relu"'):
        ABLoss().bind(place('backbone.c3', rectified=True), place())
    with pytest.raises(ConfigError, match='margin must be positive'):
        ABLoss(margin=0.0)


def test_a_teacher_of_another_size_is_resized_before_its_sign_is_taken() -> None:
    t = torch.tensor([3.0, -1.0]).reshape(1, 1, 1, 2).repeat(1, 1, 2, 1)  # on average 1: active
    assert ABLoss()(torch.full((1, 1, 1, 1), 2.0), t).item() == 0.0


# CWD


def test_padding_takes_no_part_in_the_softmax() -> None:
    s, t = torch.randn(2, 2, 3, 4, 6)
    valid = torch.zeros(2, 4, 6, dtype=torch.bool)
    valid[..., :5] = True
    inner = cwd_loss(s[..., :5], t[..., :5])
    s[..., 5], t[..., 5] = 1e4, float('nan')  # whatever a network makes of padding
    s.requires_grad_()
    value = cwd_loss(s, t, valid=valid)
    value.backward()
    torch.testing.assert_close(value, inner)
    assert bool(s.grad.isfinite().all()) and not s.grad[..., 5].any() and bool(s.grad.any())


def test_an_image_without_a_valid_position_adds_nothing() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5)
    s.requires_grad_()
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[0] = False
    value = cwd_loss(s, t, valid=valid)
    value.backward()
    torch.testing.assert_close(value, cwd_loss(s[1:], t[1:]) / 2)
    assert bool(s.grad.isfinite().all()) and not s.grad[0].any()


def test_cwd_takes_padding_from_the_batch_where_it_is_known() -> None:
    s, t = torch.randn(2, 2, 3, 4, 6)
    pixels = torch.zeros(2, 32, 48, dtype=torch.bool)
    pixels[0, :32, :33], pixels[1, :9, :48] = True, True  # one pixel is enough for a cell
    cells = torch.zeros(2, 4, 6, dtype=torch.bool)
    cells[0, :, :5], cells[1, :2] = True, True
    batch = Batch({'valid': lambda: pixels})
    expected = cwd_loss(s, t, 2.0, cells)
    torch.testing.assert_close(CWDLoss(tau=2.0)(s, t, batch), expected)
    plain = cwd_loss(s, t, 2.0)
    torch.testing.assert_close(CWDLoss(tau=2.0, mask_padding=False)(s, t, batch), plain)
    torch.testing.assert_close(CWDLoss(tau=2.0)(s, t), plain)
    with pytest.raises(ShapeError, match='valid is'):
        cwd_loss(s, t, valid=pixels)


def test_large_values_do_not_underflow_to_infinity() -> None:
    s = torch.tensor([500.0, -500.0]).reshape(1, 1, 1, 2).requires_grad_()
    value = cwd_loss(s, -s.detach())
    value.backward()
    assert value.item() == 1000.0 and bool(s.grad.isfinite().all())


def test_one_cell_is_refused_as_a_place_and_adds_nothing_in_a_step() -> None:
    pooled = place('embedding', shapes=((1, 3, 1, 1),))
    for bad in (pooled, place('logits', shapes=((1, 10),))):
        with pytest.raises(ShapeError, match='positions, of which it needs more than one'):
            CWDLoss().bind(place(), bad)
    head = CWDDistillationHead()
    head.bind(place('neck.p7', shapes=((1, 3, 2, 3),)), place('neck.p7', shapes=((1, 6, 2, 3),)))
    value = head(torch.randn(2, 3, 1, 1), torch.randn(2, 6, 1, 1))
    value.backward()
    assert value.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    with pytest.raises(ConfigError, match='tau must be positive'):
        CWDLoss(tau=0.0)


# MGD


def bound_mgd(name: str = 'neck.p3', **options: object) -> MGDDistillationHead:
    torch.manual_seed(7)
    head = MGDDistillationHead(loss=options or None)
    head.bind(place(name), place(name, shapes=((1, 6, 4, 5),)))
    return head


def test_a_resumed_loss_draws_what_it_would_have_drawn() -> None:
    s, t = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    whole = bound_mgd()
    values = [whole(s, t, Batch({'seed': seed})) for seed in range(4)]
    resumed = bound_mgd()
    resumed.load_state_dict(whole.state_dict())
    assert [resumed(s, t, Batch({'seed': seed})) for seed in (2, 3)] == values[2:]
    assert len({v.item() for v in values}) == 4


def test_levels_and_processes_have_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 1, 20, 20)
    masks = [bound_mgd(name).loss.mask(x, seed=3) for name in ('neck.p3', 'neck.p4', 'neck.p3')]
    assert torch.equal(masks[0], masks[2]) and not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0][0], masks[0][1])
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 1)
    assert not torch.equal(bound_mgd().loss.mask(x, seed=3), masks[0])


def test_the_generation_block_has_the_teachers_channels_and_is_saved() -> None:
    head = bound_mgd()
    assert sum(p.numel() for p in head.loss.parameters()) == 2 * (6 * 6 * 9 + 6)
    assert any(key.startswith('loss.generator.') for key in head.state_dict())


def test_nothing_is_masked_in_eval_mode() -> None:
    head = bound_mgd(masked=1.0).eval()
    s = torch.randn(2, 3, 4, 5, requires_grad=True)
    head(s, torch.randn(2, 6, 4, 5)).backward()
    assert bool(s.grad.any())


def test_mgd_says_what_it_lacks() -> None:
    x = torch.zeros(1, 3, 4, 5)
    with pytest.raises(ConfigError, match='Use it in a head'):
        MGDLoss()(x, x, Batch({'seed': 0}))
    with pytest.raises(ConfigError, match=r"Batch\(\{'seed': step\}\)"):
        MGDDistillationHead()(x, x)
    with pytest.raises(TapError, match='gives 2 tensors'):
        MGDLoss().bind(place(), place(shapes=((1, 3, 4, 5), (1, 3, 2, 3))))
    with pytest.raises(ConfigError, match='masked is a share'):
        MGDLoss(masked=1.5)
    with pytest.raises(ConfigError, match="Did you mean 'channel'"):
        MGDLoss(mask_kind='chanel')
    assert MGDDistillationHead().needs == ('seed',)


@pytest.mark.parametrize('shape', [(2, 4, 5), (2, 1, 5, 4), (2, 1, 4, 5, 1), (3, 1, 4, 5)])
def test_masks_that_would_be_stretched_the_wrong_way_are_refused(shape: tuple[int, ...]) -> None:
    x = torch.zeros(2, 2, 4, 5)
    with pytest.raises(ShapeError, match='the mask is'):
        mgd_loss(x, x, torch.nn.Identity(), torch.ones(shape))
    with pytest.raises(ShapeError, match='mgd_loss: G'):
        mgd_loss(x, x, torch.nn.MaxPool2d(2), torch.ones(2, 1, 4, 5))


# FGFI


@pytest.mark.parametrize('policy', fgfi.POLICIES)
def test_boxes_in_turns_give_the_same_masks(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors = list(pyramid().values())
    whole = imitation_mask(anchors, BOXES, 0.3, policy)
    monkeypatch.setattr(fgfi, 'BUDGET', 1)
    parts = imitation_mask(anchors, BOXES, 0.3, policy)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize('policy', fgfi.POLICIES)
def test_a_mask_is_the_union_over_boxes_in_any_order(policy: str) -> None:
    anchors = list(pyramid().values())
    whole = imitation_mask(anchors, BOXES, policy=policy)
    single = [imitation_mask(anchors, box[None], policy=policy) for box in BOXES]
    mixed = imitation_mask(anchors, BOXES[[2, 0, 1, 0]], policy=policy)
    for level, mask in enumerate(whole):
        assert torch.equal(mask, single[0][level] | single[1][level] | single[2][level])
        assert torch.equal(mask, mixed[level])


def test_a_larger_psi_marks_fewer_cells() -> None:
    anchors = list(pyramid().values())
    before = imitation_mask(anchors, BOXES, 0.0)
    for psi in (0.2, 0.5, 0.9, 1.0):
        after = imitation_mask(anchors, BOXES, psi)
        assert not any((a & ~b).any() for a, b in zip(after, before, strict=True))
        before = after
    assert not any(mask.any() for mask in before)  # strictly above the best: none


@pytest.mark.parametrize('policy', fgfi.POLICIES)
def test_padding_does_not_change_a_mask(policy: str) -> None:
    narrow, wide = pyramid(width=12), pyramid(width=20)
    box = torch.tensor([[60.0, 10.0, 104.0, 50.0]])  # its best anchor would be in the padding
    alone = imitation_mask(list(narrow.values()), box, policy=policy)
    valid = []
    for a, b in zip(narrow.values(), wide.values(), strict=True):
        inside = torch.zeros(b.shape[:3], dtype=torch.bool)
        inside[:, : a.shape[1]] = True
        valid.append(inside)
    padded = imitation_mask(list(wide.values()), box, policy=policy, valid=valid)
    unaware = imitation_mask(list(wide.values()), box, policy=policy)
    for a, b in zip(alone, padded, strict=True):
        assert torch.equal(a, b[:, : a.shape[1]]) and not b[:, a.shape[1] :].any()
    differs = [not torch.equal(a, b) for a, b in zip(padded, unaware, strict=True)]
    assert any(differs)


def test_boxes_without_area_or_number_mark_nothing() -> None:
    anchors = list(pyramid().values())
    for boxes in (torch.zeros(0, 4), torch.zeros(0), torch.tensor([[5.0, 5.0, 5.0, 30.0]])):
        for policy in fgfi.POLICIES:
            masks = imitation_mask(anchors, boxes, policy=policy)
            assert [m.shape for m in masks] == [a.shape[:2] for a in anchors]
            assert not any(m.any() for m in masks)


def test_anchor_order_is_row_column_shape() -> None:
    # One wide anchor shape among squares, on a grid that is not square: only its cell is marked.
    anchors = grid(3, 5, 8, [(8, 8), (40, 4)])
    (mask,) = imitation_mask([anchors], torch.tensor([[4.0, 6.0, 44.0, 10.0]]), psi=0.99)
    assert mask.nonzero().tolist() == [[1, 3]]


def test_masks_have_no_graph_and_low_precision_is_lifted() -> None:
    anchors = [a.requires_grad_() for a in pyramid().values()]
    masks = imitation_mask(anchors, BOXES)
    assert not any(m.requires_grad for m in masks)
    halves = imitation_mask([a.detach().half() for a in anchors], BOXES)
    assert all(torch.equal(a, b) for a, b in zip(masks, halves, strict=True))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'psi': 1.5}, 'psi is a share'),
        ({'policy': 'globl'}, "Did you mean 'global'"),
    ],
)
def test_options_of_the_mask_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        imitation_mask(list(pyramid().values()), BOXES, **options)
    with pytest.raises(ConfigError, match=message):
        FGFILoss(**options)


def test_shapes_of_the_mask_are_checked() -> None:
    anchors = list(pyramid().values())
    with pytest.raises(ShapeError, match=r'\(H, W, A, 4\)'):
        imitation_mask([anchors[0].reshape(-1, 4)], BOXES)
    with pytest.raises(ShapeError, match=r'boxes are \(G, 4\)'):
        imitation_mask(anchors, BOXES[:, :3])
    with pytest.raises(ShapeError, match='valid is'):
        imitation_mask(anchors, BOXES, valid=[a[..., 0, 0] > 0 for a in anchors])
    with pytest.raises(ShapeError, match='a mask is'):
        imitation_loss([torch.zeros(1, 2, 3, 4)], [torch.zeros(1, 2, 3, 4)], [torch.ones(1, 4, 3)])


def features(width: int = 12, images: int = 2, levels: int = 3) -> list[Tensor]:
    return [torch.randn(images, 3, 8 >> i, width >> i) for i in range(levels)]


def bound_fgfi(levels: list[int], **options: object) -> FGFIDistillationHead:
    head = FGFIDistillationHead(loss=options or None)
    sizes = tuple((1, 3, 8 >> i, 12 >> i) for i in levels)
    strides = tuple((8.02 * 2**i, 7.98 * 2**i) for i in levels)
    head.bind(place(shapes=sizes, strides=strides), place(shapes=sizes, strides=strides))
    return head


@pytest.mark.parametrize('policy', fgfi.POLICIES)
def test_a_batch_without_boxes_gives_every_connector_a_zero_gradient(policy: str) -> None:
    head = bound_fgfi([0, 1, 2], policy=policy)
    value = head(features(), features(), detection_batch([[], []]))
    value.backward()
    assert value.item() == 0.0
    assert len(list(head.parameters())) == 6
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_the_loss_is_over_tapped_levels_and_the_mask_over_all() -> None:
    small, middle = [[16.0, 16.0, 32.0, 32.0]], [[16.0, 16.0, 48.0, 48.0]]
    loss = FGFILoss(loss_weight=1.0)
    sizes = ((1, 3, 4, 6),)
    loss.bind(place(shapes=sizes, strides=((16, 16),)), place(shapes=sizes))
    s, t = torch.zeros(2, 3, 4, 6), torch.ones(2, 3, 4, 6)
    # The small box fits the first level exactly, so that nothing is left on the second.
    assert loss(s, t, detection_batch([small, small])).item() == 0.0
    assert loss(s, t, detection_batch([small, middle])).item() == 1.5
    (mask,) = loss.masks(detection_batch([small, middle]), 1)
    assert not mask[0].any() and bool(mask[1].any())


def test_levels_without_anchors_are_refused_with_their_strides() -> None:
    loss = FGFILoss()
    loss.bind(place(strides=((4.0, 4.0),)), place())
    with pytest.raises(TapError, match='stride 4x4, where it has no anchors.*8x8, 16x16, 32x32'):
        loss(torch.zeros(1, 3, 16, 24), torch.zeros(1, 3, 16, 24), detection_batch([[]]))
    with pytest.raises(TapError, match='2 levels are tapped'):
        FGFILoss()(features(levels=2), features(levels=2), detection_batch([[], []]))


def test_norm_per_level_is_the_mean_of_levels() -> None:
    s, t = features(), features()
    batch = detection_batch([BOXES.tolist(), []])
    masks = FGFILoss().masks(batch, 3)
    parts = [imitation_loss([a], [b], [m]) for a, b, m in zip(s, t, masks, strict=True)]
    value = FGFILoss(loss_weight=1.0, norm='per_level')(s, t, batch)
    torch.testing.assert_close(value, torch.stack(parts).mean())
    assert value.item() != FGFILoss(loss_weight=1.0)(s, t, batch).item()


def test_processes_share_the_number_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    s, t = features(), features()
    batch = detection_batch([BOXES.tolist(), []])
    alone = FGFILoss()(s, t, batch)
    own = sum(int(m.sum()) for m in FGFILoss().masks(batch, 3))
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 2)
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda count: count.add_(3 * own))
    torch.testing.assert_close(FGFILoss()(s, t, batch), alone / 2)  # own / mean(own, 3 own)


def test_a_lone_cell_counts_whole_among_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 8)
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda count: None)  # none elsewhere
    loss = torch.tensor(3.0)
    # The mean of eight processes' gradients is then that of the one cell.
    assert fgfi._over_processes(loss, [mask]).item() == 8 * 3.0
    assert fgfi._over_processes(loss * 0, [mask & False]).item() == 0


def test_the_batch_is_asked_for_by_name() -> None:
    head = FGFIDistillationHead()
    assert head.needs == ('gt_boxes', 'anchors', 'anchors_valid')
    assert DistillationHead(loss='KDQFLLoss').needs == ('dense_weights', 'dense_avg_factor')


# Sigmoid logits


@rows
def test_extreme_logits_are_finite(loss: Callable[..., Tensor]) -> None:
    s = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    value = loss(s, torch.tensor([[-200.0, 200.0, 0.0]]))
    value.backward()
    assert bool(value.isfinite()) and bool(s.grad.isfinite().all())


@pytest.mark.parametrize('beta', [0.0, 0.5, 1.0, 2.0])
def test_kd_qfl_at_equality_has_a_finite_gradient(beta: float) -> None:
    s = torch.randn(3, 2, requires_grad=True)
    kd_qfl_loss(s, s.detach().clone(), beta).backward()
    assert bool(s.grad.isfinite().all())


@rows
def test_no_rows_or_no_positives_give_an_attached_zero(loss: Callable[..., Tensor]) -> None:
    s = torch.randn(0, 3, requires_grad=True)
    assert loss(s, torch.zeros(0, 3)).requires_grad
    assert loss(s, torch.zeros(0, 3)).item() == 0.0
    s = torch.randn(4, 3, requires_grad=True)
    for factor in (0.0, 0, torch.tensor(0.0)):
        value = loss(s, torch.zeros(4, 3), weight=torch.zeros(4), avg_factor=factor)
        assert value.item() == 0.0 and value.requires_grad


@rows
def test_rows_of_weight_zero_do_not_count(loss: Callable[..., Tensor]) -> None:
    s, t = torch.randn(2, 4, 3)
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    value = loss(s, t, weight=weight, avg_factor=torch.tensor(2.0))
    torch.testing.assert_close(value, loss(s[::2], t[::2]))


@pytest.mark.parametrize('module', [KDQFLLoss(), BinaryKLLoss()])
def test_maps_are_flattened_in_the_order_of_anchors(module: torch.nn.Module) -> None:
    images, anchors, classes = 2, 3, 4
    function = kd_qfl_loss if isinstance(module, KDQFLLoss) else binary_kl_loss
    sizes = [(3, 5), (2, 2)]
    s = [torch.randn(images, anchors * classes, *size) for size in sizes]
    t = [torch.randn(images, anchors * classes, *size) for size in sizes]
    weights = [torch.rand(images, h * w * anchors) for h, w in sizes]
    batch = Batch({'dense_weights': weights, 'dense_avg_factor': torch.tensor(7.0)})
    expected = torch.zeros(())
    for a, b, weight, (h, w) in zip(s, t, weights, sizes, strict=True):
        for n in range(images):
            for y in range(h):
                for x in range(w):
                    for k in range(anchors):
                        part = slice(k * classes, (k + 1) * classes)
                        one = function(a[n, part, y, x][None], b[n, part, y, x][None])
                        expected = expected + one * weight[n, (y * w + x) * anchors + k] / 7
    torch.testing.assert_close(module(s, t, batch), expected)


def test_maps_that_do_not_fit_the_anchors_are_refused() -> None:
    def batch(*counts: int) -> Batch:
        weights = [torch.ones(1, count) for count in counts]
        return Batch({'dense_weights': weights, 'dense_avg_factor': 1.0})

    x = torch.zeros(1, 6, 2, 2)
    with pytest.raises(ShapeError, match='on 2 levels'):
        KDQFLLoss()([x], [x], batch(4, 4))
    with pytest.raises(ShapeError, match='7 weights do not fit'):
        KDQFLLoss()([x], [x], batch(7))
    with pytest.raises(ShapeError, match='does not divide into 4 anchors'):
        KDQFLLoss()([x], [x], batch(16))
    with pytest.raises(ShapeError, match='6 channels and the teacher 3'):
        KDQFLLoss()([x], [x[:, :3]], batch(4))


# Heads alone


def test_heads_work_without_a_model_around() -> None:
    s, t = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 6, 4, 5)
    heads = (
        OFDDistillationHead(loss={'margin': 'empirical'}),
        PKDDistillationHead(),
        ABDistillationHead(),
        CWDDistillationHead(),
    )
    for head in heads:
        head(s, t).backward()
        assert all(p.grad is not None and p.grad.any() for p in head.parameters())
        assert list(head.parameters())


def test_margins_need_a_place() -> None:
    with pytest.raises(DenseKDError, match='margins come from the place'):
        OFDLoss()(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))


# KD


LOGIT_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'kd': kd_loss,
    'mean_prob': lambda s, t: ensemble_kd_loss(s, [t, t + 1]),
    'mean_logit': lambda s, t: ensemble_kd_loss(s, [t, t + 1], mode='mean_logit'),
    'soft_label': weighted_soft_label_loss,
    'objectness': lambda s, t: weighted_soft_objectness_loss(s.flatten(), t.flatten()),
    'bounded': lambda s, t: bounded_regression_loss(s, t, torch.zeros_like(s), 1e9),
}
logits = pytest.mark.parametrize('loss', LOGIT_LOSSES.values(), ids=LOGIT_LOSSES.keys())


@logits
def test_logit_losses_of_nothing_are_an_attached_zero(loss: Callable[..., Tensor]) -> None:
    s = torch.zeros(0, 4, requires_grad=True)
    value = loss(s, torch.zeros(0, 4))
    value.backward()
    assert value.item() == 0.0


@logits
def test_certain_networks_that_disagree_are_finite(loss: Callable[..., Tensor]) -> None:
    # Probabilities round to 0 and 1 here, whose logarithm is infinite.
    s = torch.tensor([[2000.0, 0.0, -2000.0, 0.0]], requires_grad=True)
    value = loss(s, torch.tensor([[-2000.0, 0.0, 2000.0, 0.0]]))
    value.backward()
    assert bool(value.isfinite()) and bool(s.grad.isfinite().all())


@pytest.mark.parametrize('loss', [kd_loss, weighted_soft_label_loss])
def test_unlike_classes_are_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ShapeError, match=r'the student has \d classes and the teacher \d'):
        loss(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(ShapeError, match=r'the student has \d classes and the teacher \d'):
        loss(torch.zeros(2, 4), torch.zeros(2, 1))  # which would be broadcast
    with pytest.raises(ShapeError, match='the student has 2 images and the teacher 3'):
        loss(torch.zeros(2, 4), torch.zeros(3, 4))


def test_kd_refuses_what_are_no_logits() -> None:
    with pytest.raises(ShapeError, match=r'\(N, K\) or \(N, K, H, W\), not \(2, 5, 4\)'):
        kd_loss(torch.zeros(2, 5, 4), torch.zeros(2, 5, 4))
    with pytest.raises(ShapeError, match='at least one teacher'):
        ensemble_kd_loss(torch.zeros(2, 4), [])
    with pytest.raises(ConfigError, match="'mean_prb'. Did you mean 'mean_prob'"):
        ensemble_kd_loss(torch.zeros(2, 4), [torch.zeros(2, 4)], mode='mean_prb')
    with pytest.raises(ShapeError, match=r'valid is \(2, 1, 3\).*must be \(2, 3, 3\)'):
        ones = torch.ones(2, 1, 3, dtype=torch.bool)
        kd_loss(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3), valid=ones)


@pytest.mark.parametrize('junk', [float('inf'), float('nan'), 1e30])
def test_ignored_pixels_may_hold_anything(junk: float) -> None:
    s, t = torch.randn(2, 2, 3, 4, 5)
    valid = torch.rand(2, 4, 5) > 0.5
    expected = kd_loss(s, t, valid=valid)
    hidden = ~valid[:, None].expand_as(s)
    x = s.masked_fill(hidden, junk).requires_grad_()
    value = kd_loss(x, t.masked_fill(hidden, junk), valid=valid)
    value.backward()
    torch.testing.assert_close(value, expected)
    assert bool(x.grad.isfinite().all()) and not x.grad[hidden].any()


def test_kd_without_a_valid_pixel_is_an_attached_zero() -> None:
    s = torch.randn(2, 3, 4, 5, requires_grad=True)
    value = kd_loss(s, torch.randn(2, 3, 4, 5), valid=torch.zeros(2, 4, 5, dtype=torch.bool))
    value.backward()
    assert value.item() == 0.0 and not s.grad.any()


def test_kd_module_takes_valid_pixels_where_there_are_any() -> None:
    s, t = torch.randn(2, 2, 3, 2, 3)
    cells = torch.tensor([[[True, True, False], [True, True, False]], [[True] * 3, [False] * 3]])
    pixels = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    expected = kd_loss(s, t, 2.0, cells)
    module = KDLoss(loss_weight=3.0, tau=2.0)
    torch.testing.assert_close(module(s, t, Batch({'valid': lambda: pixels})), 3 * expected)
    torch.testing.assert_close(module(s, t, Batch({'valid': cells})), 3 * expected)
    torch.testing.assert_close(module(s, t), 3 * kd_loss(s, t, 2.0))
    assert abs(float(expected - kd_loss(s, t, 2.0))) > 1e-3
    several = module(s, [t, t], Batch({'valid': pixels}))
    torch.testing.assert_close(several, 3 * expected)
    # Logits of images have no pixels.
    row = module(s[:, :, 0, 0], t[:, :, 0, 0], Batch({'valid': pixels}))
    torch.testing.assert_close(row, 3 * kd_loss(s[:, :, 0, 0], t[:, :, 0, 0], 2.0))


def test_the_teachers_logits_are_resized_before_the_softmax() -> None:
    s, t = torch.randn(2, 3, 4, 6), 5 * torch.randn(2, 3, 8, 12)
    small = torch.nn.functional.interpolate(t, size=(4, 6), mode='bilinear', align_corners=False)
    torch.testing.assert_close(KDLoss()(s, t), kd_loss(s, small))
    torch.testing.assert_close(KDLoss()(s, [t, small]), kd_loss(s, small))


def test_a_list_of_places_is_not_a_list_of_teachers() -> None:
    # As two teachers of the first place, the student's second place would never be looked at.
    s, t = torch.randn(2, 2, 4, 3)
    expected = kd_loss(s[0], t[0]) + kd_loss(s[1], t[1])
    torch.testing.assert_close(KDLoss()([s[0], s[1]], [t[0], t[1]]), expected)
    with pytest.raises(ShapeError, match='the student tap gives 2 tensors'):
        KDLoss()([s[0], s[1]], [t[0]])


def test_options_of_kd_are_checked() -> None:
    with pytest.raises(ConfigError, match='tau is a temperature above 0'):
        KDLoss(tau=0.0)
    with pytest.raises(ConfigError, match="Did you mean 'mean_logit'"):
        KDLoss(mode='mean_logits')


@pytest.mark.parametrize(
    ('tap', 'advice'),
    [('head.cls_logits', 'kd_qfl or binary_kl'), ('rpn.objectness', 'WeightedSoftObjectnessLoss')],
)
def test_kd_of_sigmoids_is_refused_when_it_is_built(tap: str, advice: str) -> None:
    head = DistillationHead(loss='KDLoss')
    with pytest.raises(ConfigError, match=advice):
        head.bind(place(tap), place(tap))


def test_kd_of_unlike_or_single_classes_is_refused_when_it_is_built() -> None:
    with pytest.raises(ShapeError, match='the student has 3 classes and the teacher 4'):
        KDDistillationHead().bind(place('logits'), place('logits', ((1, 4, 4, 5),)))
    one = place('decode.logits', ((1, 1, 4, 5),))
    with pytest.raises(ShapeError, match="'decode.logits' has one logit a place.*binary_kl"):
        KDDistillationHead().bind(one, one)
    # Behind a connector the channels may be anything.
    head = KDDistillationHead(stu_connector={'type': 'ConvConnector'})
    head.bind(place('embedding'), place('logits', ((1, 4, 4, 5),)))
    assert head(torch.randn(1, 3, 4, 5), torch.randn(1, 4, 4, 5)).requires_grad


# Chen 2017


def regions(count: int = 6) -> dict[str, object]:
    """Returns the fields of regions of two classes and background, every second positive."""
    labels = torch.tensor([0, 2, 1, 2, 1, 2])[:count]
    return {
        'rois': torch.zeros(count, 5),
        'roi_labels': labels,
        'roi_positive': labels < 2,
        'roi_box_targets': torch.randn(count, 4),
    }


def test_soft_labels_are_compared_on_the_students_regions() -> None:
    s, t = torch.randn(2, 6, 3)
    module = WeightedSoftLabelLoss(loss_weight=0.5, bg_weight=2.0)
    value = module(s, t, Batch(regions()))
    torch.testing.assert_close(value, 0.5 * weighted_soft_label_loss(s, t, 2.0))
    for rows in ((s[:5], t), (s, t[:5]), (s[:5], t[:5])):
        with pytest.raises(ShapeError, match='sampled 6 regions'):
            module(*rows, Batch(regions()))


def test_soft_labels_without_regions_are_never_computed() -> None:
    with pytest.raises(ConfigError, match="a loss asks for 'rois'"):
        WeightedSoftLabelLoss()(torch.randn(6, 3), torch.randn(6, 3))
    assert DistillationHead(loss='WeightedSoftLabelLoss').needs == ('rois',)
    assert DistillationHead(loss='WeightedSoftObjectnessLoss').needs == ('rpn_weights',)


@pytest.mark.parametrize(
    ('loss', 'need'),
    [
        ({'type': 'WeightedSoftLabelLoss'}, 'rois'),
        ({'type': 'WeightedSoftObjectnessLoss'}, 'rpn_weights'),
        ({'type': 'BoundedRegressionLoss'}, 'rois'),
        ({'type': 'BoundedRegressionLoss', 'boxes': 'rpn'}, 'rpn_positive'),
        ({'type': 'BoundedRegressionLoss', 'boxes': 'dense'}, 'dense_positive'),
    ],
)
def test_a_wrapper_without_regions_or_targets_is_refused(loss: dict[str, str], need: str) -> None:
    distiller = Distiller(DistillationHead(loss=loss), Tap('x'), Tap('x'), 'head_x')
    with pytest.raises(ConfigError, match=f"{loss['type']} needs {need} .* Wrapper can't supply"):
        check_needs([distiller], ('inputs', 'gt_boxes', 'dense_avg_factor'), 'Wrapper')


def test_soft_labels_need_a_class_beside_the_background() -> None:
    with pytest.raises(ShapeError, match=r'a class at least and the background, not \(2, 1\)'):
        weighted_soft_label_loss(torch.zeros(2, 1), torch.zeros(2, 1))


def test_objectness_of_sampled_anchors_alone_pooled_over_levels() -> None:
    images, anchors = 2, 3
    sizes = [(3, 5), (1, 2)]
    s = [torch.randn(images, anchors, *size) for size in sizes]
    t = [torch.randn(images, anchors, *size) for size in sizes]
    weights = [(torch.rand(images, h * w * anchors) > 0.6).float() for h, w in sizes]
    picked: list[list[Tensor]] = [[], []]
    for a, b, weight, (h, w) in zip(s, t, weights, sizes, strict=True):
        for n in range(images):
            for y in range(h):
                for x in range(w):
                    for k in range(anchors):
                        if weight[n, (y * w + x) * anchors + k]:
                            picked[0].append(a[n, k, y, x])
                            picked[1].append(b[n, k, y, x])
    expected = weighted_soft_objectness_loss(*map(torch.stack, picked))
    batch = Batch({'rpn_weights': weights})
    torch.testing.assert_close(WeightedSoftObjectnessLoss()(s, t, batch), expected)

    # The same logits as two of a softmax, object first and background last, on either side.
    def pair(x: Tensor) -> Tensor:
        shift = torch.randn_like(x)
        return torch.stack([x + shift, shift], 2).flatten(1, 2)

    for both in (([pair(x) for x in s], t), (s, [pair(x) for x in t])):
        value = WeightedSoftObjectnessLoss()(*both, batch)
        torch.testing.assert_close(value, expected)


def test_objectness_without_a_sampled_anchor_is_an_attached_zero() -> None:
    s = [torch.randn(1, 3, 2, 2, requires_grad=True) for _ in range(2)]
    batch = Batch({'rpn_weights': [torch.zeros(1, 12), torch.zeros(1, 12)]})
    value = WeightedSoftObjectnessLoss()(s, [x.detach() for x in s], batch)
    value.backward()
    assert value.item() == 0.0
    assert all(x.grad is not None and not x.grad.any() for x in s)


def test_objectness_that_does_not_fit_the_anchors_is_refused() -> None:
    module, x = WeightedSoftObjectnessLoss(), torch.zeros(1, 3, 2, 2)
    with pytest.raises(ShapeError, match='on 2 levels'):
        module([x], [x], Batch({'rpn_weights': [torch.ones(1, 12)] * 2}))
    for count in (4, 7, 24):
        with pytest.raises(ShapeError, match=f'its level has {count} anchors'):
            module([x], [x], Batch({'rpn_weights': [torch.ones(1, count)]}))
    with pytest.raises(ShapeError, match='on the same grid'):
        module([x], [x[..., :1]], Batch({'rpn_weights': [torch.ones(1, 12)]}))


def test_deltas_of_the_true_class_are_taken_by_each_network_on_its_own() -> None:
    fields = regions()
    batch, target = Batch(fields), fields['roi_box_targets']
    by_class, agnostic = torch.randn(6, 8), torch.randn(6, 4)
    # Regions 0, 2 and 4 are positive, of classes 0, 1 and 1.
    own = torch.stack([by_class[0, :4], by_class[2, 4:], by_class[4, 4:]])
    pairs = {
        'both': ((by_class, by_class + 0.1), (own, own + 0.1)),
        'student': ((by_class, agnostic), (own, agnostic[::2])),
        'teacher': ((agnostic, by_class), (agnostic[::2], own)),
        'none': ((agnostic, agnostic + 0.1), (agnostic[::2], agnostic[::2] + 0.1)),
    }
    module = BoundedRegressionLoss(loss_weight=2.0, margin=0.1)
    for given, rows in pairs.values():
        # Divided by all six regions, as the box head's own loss.
        expected = 2 * bounded_regression_loss(*rows, target[::2], 0.1, avg_factor=6)
        torch.testing.assert_close(module(*given, batch), expected)
        assert float(expected) > 0


def test_bounded_regression_without_a_positive_is_an_attached_zero() -> None:
    fields = {**regions(), 'roi_positive': torch.zeros(6, dtype=torch.bool)}
    for batch, rows in ((Batch(fields), 6), (Batch(regions(0)), 0)):
        s = torch.randn(rows, 8, requires_grad=True)
        value = BoundedRegressionLoss()(s, torch.randn(rows, 8), batch)
        value.backward()
        assert value.item() == 0.0 and s.grad is not None and not s.grad.any()


def test_deltas_that_do_not_fit_the_regions_are_refused() -> None:
    module, batch = BoundedRegressionLoss(), Batch(regions())
    with pytest.raises(ShapeError, match="the teacher's deltas are 5 rows.*sampled 6 regions"):
        module(torch.zeros(6, 4), torch.zeros(5, 4), batch)
    with pytest.raises(ShapeError, match=r"the student's deltas are \(6, 7\)"):
        module(torch.zeros(6, 7), torch.zeros(6, 4), batch)
    with pytest.raises(ShapeError, match='deltas for 2 classes and the teacher for 3'):
        module(torch.zeros(6, 8), torch.zeros(6, 12), batch)
    with pytest.raises(ShapeError, match='2 tensors are tapped, and one box head has one'):
        module([torch.zeros(6, 4)] * 2, [torch.zeros(6, 4)] * 2, batch)


@pytest.mark.parametrize('boxes', ['rpn', 'dense'])
def test_deltas_of_anchors_are_taken_in_the_order_of_anchors(boxes: str) -> None:
    images, anchors, sizes = 2, 2, [(2, 3), (1, 2)]
    s = [torch.randn(images, 4 * anchors, *size) for size in sizes]
    t = [torch.randn(images, 4 * anchors, *size) for size in sizes]
    positive = [torch.rand(images, h * w * anchors) > 0.5 for h, w in sizes]
    target = [torch.randn(images, h * w * anchors, 4) for h, w in sizes]
    rows: list[list[Tensor]] = [[], [], []]
    for i, (h, w) in enumerate(sizes):
        for n in range(images):
            for y in range(h):
                for x in range(w):
                    for k in range(anchors):
                        at = (y * w + x) * anchors + k
                        if positive[i][n, at]:
                            rows[0].append(s[i][n, 4 * k : 4 * k + 4, y, x])
                            rows[1].append(t[i][n, 4 * k : 4 * k + 4, y, x])
                            rows[2].append(target[i][n, at])
    fields = {
        f'{boxes}_positive': positive,
        f'{boxes}_box_targets': target,
        f'{boxes}_avg_factor': torch.tensor(5.0),
    }
    expected = bounded_regression_loss(*map(torch.stack, rows), 0.2, 5.0)
    module = BoundedRegressionLoss(loss_weight=1.0, margin=0.2, boxes=boxes)
    torch.testing.assert_close(module(s, t, Batch(fields)), expected)
    assert set(module.needs) == set(fields)
    with pytest.raises(ShapeError, match='on 2 levels'):
        module(s[:1], t[:1], Batch(fields))
    with pytest.raises(ShapeError, match='each of which needs four'):
        module(s[::-1], t[::-1], Batch(fields))


def test_needs_of_bounded_regression_are_those_of_its_head() -> None:
    assert set(BoundedRegressionLoss().needs) == set(regions())
    rpn = DistillationHead(loss={'type': 'BoundedRegressionLoss', 'boxes': 'rpn'})
    assert rpn.needs == ('rpn_positive', 'rpn_box_targets', 'rpn_avg_factor')
    assert set(BoundedRegressionLoss.needs) == set(regions())  # the class is left as it was


def test_shapes_of_bounded_regression_are_checked() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ShapeError, match=r'deltas are \(P, 4\), not \(3, 5\)'):
        bounded_regression_loss(torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(3, 5))
    with pytest.raises(ShapeError, match=r'the target is \(1, 4\)'):
        bounded_regression_loss(x, x, x[:1])
    with pytest.raises(ShapeError, match='the student has 3 images and the teacher 1'):
        bounded_regression_loss(x, x[:1], x)
    with pytest.raises(ShapeError, match=r'logits are \(A,\), not \(3, 4\)'):
        weighted_soft_objectness_loss(x, x)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: WeightedSoftLabelLoss(tau=-1.0), 'tau is a temperature above 0, not -1.0'),
        (lambda: WeightedSoftLabelLoss(bg_weight=-1.0), 'bg_weight is a number from 0 up'),
        (lambda: WeightedSoftObjectnessLoss(bg_weight=-1.0), 'bg_weight is a number from 0 up'),
        (lambda: BoundedRegressionLoss(margin=-0.1), 'margin is a number from 0 up, not -0.1'),
        (lambda: BoundedRegressionLoss(boxes='rois'), "boxes='rois'. Did you mean 'roi'"),
    ],
)
def test_options_of_chen_are_checked(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
