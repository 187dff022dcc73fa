"""Segmentors beside their teachers: places, labels, and the invariants of a step."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from densekd.core.head import DistillationHead
from densekd.core.taps import Taps
from densekd.core.trace import trace
from densekd.errors import ConfigError, DataError, ShapeError
from densekd.methods import dkd_loss, kd_loss
from densekd.wrappers.build import build_network
from densekd.wrappers.segmentor import DistillSegmentor
from densekd.wrappers.segmentor_taps import segmentor_forward, segmentor_taps
from tests.helpers.detectors import ADAMW, entry, losses_of, prepared, state, train_on, unlike
from tests.helpers.segmentors import SEGMENTORS, batch, deeplabv3plus, every_method

every = pytest.mark.parametrize('name', list(SEGMENTORS))
STRIDES = {
    'backbone.c2': 4, 'backbone.c3': 8, 'backbone.c4': 8, 'backbone.c5': 8,
    'decode.aspp': 8, 'decode.feature': 4, 'decode.logits': 4, 'aux.logits': 8,
}  # fmt: skip


def distilled(
    name: str = 'deeplabv3plus', distillers: Any = None, weights: float | None = None, **more: Any
) -> DistillSegmentor:
    """Returns a tiny segmentor beside an untrained teacher of twice its width."""
    make = SEGMENTORS[name]
    teacher = more.pop('teacher', None) or dict(model=make(8, 24), untrained=True)
    if distillers is None and 'preset' not in more:
        distillers = every_method(weights)
    return DistillSegmentor(make(), teacher, distillers, **more)


def plain(name: str = 'deeplabv3plus') -> nn.Module:
    return build_network(SEGMENTORS[name](), 'mmseg', 'student')


def losses(model: nn.Module, data: Any = None) -> dict[str, Any]:
    return losses_of(model, batch() if data is None else data)


# Places ------------------------------------------------------------------------------------------


def test_places_of_deeplab_are_those_of_the_paper() -> None:
    model = plain()
    taps = segmentor_taps(model)
    places = trace(model, taps, segmentor_forward)
    found = {name: place.strides[0] for name, place in places.items() if '.pre_relu' not in name}
    assert found == {name: (stride, stride) for name, stride in STRIDES.items()}
    assert taps['decode.feature'].path == 'decode_head.sep_bottleneck.1.pointwise_conv.bn'
    assert taps['decode.aspp'].path == 'decode_head.bottleneck.bn'
    assert places['decode.feature'].norm is model.decode_head.sep_bottleneck[1].pointwise_conv.bn


@every
def test_places_give_what_the_student_computes_while_it_trains(name: str) -> None:
    model = plain(name)
    model.train()
    data = prepared(model, batch())
    taps = segmentor_taps(model)
    logits: list[Any] = []
    head = model.decode_head[-1] if isinstance(model.decode_head, nn.ModuleList) else None
    head = model.decode_head if head is None else head
    whole = head.loss_by_feat
    head.loss_by_feat = lambda seg_logits, samples: (
        logits.append(seg_logits) or whole(seg_logits, samples)
    )
    with Taps(model, taps, student=True) as reading:
        model(data['inputs'], data['data_samples'], mode='loss')
    final = logits[-1][-1] if isinstance(logits[-1], (list, tuple)) else logits[-1]
    assert torch.equal(reading['decode.logits'], final)
    assert (reading['decode.feature'] < 0).any(), 'a place before a ReLU has negative values'
    assert (reading['backbone.c5.pre_relu'] < 0).any()


def test_taps_fire_after_synchronised_norms_were_reverted() -> None:
    from mmengine.model import revert_sync_batchnorm

    model = distilled()
    reverted = revert_sync_batchnorm(model)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in reverted.modules())
    before = [k for k in losses(model) if k.startswith('distill.')]
    assert before == [f'distill.loss_{key}' for key in model.distillers]


def test_the_teacher_stops_before_what_no_place_needs() -> None:
    calls: list[str] = []
    model = distilled(distillers=[entry('backbone.c4', 'AT')])
    teacher = model.teachers['teacher'].model
    for path in ('backbone.layer3', 'backbone.layer4', 'decode_head.bottleneck', 'auxiliary_head'):
        teacher.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    losses(model)
    calls.clear()
    losses(model)
    assert calls == ['backbone.layer3']


def test_the_teachers_dropout_is_off() -> None:
    model = distilled(distillers=[entry('decode.logits', 'KD')])
    teacher = model.teachers['teacher'].model
    seen: list[torch.Tensor] = []
    teacher.decode_head.conv_seg.register_forward_hook(lambda m, a, out: seen.append(out))
    model.train()
    losses(model), losses(model)
    assert torch.equal(seen[-1], seen[-2])


@every
@pytest.mark.parametrize(
    'preset', ['ofd', 'kd', 'dkd', 'dist', 'cwd', 'at', 'ab', 'fitnet', 'mgd', 'skd', 'ifvd']
)
def test_presets_train(name: str, preset: str) -> None:
    model = distilled(name, preset=preset)
    train_on(model, [batch(0), batch(1)])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_ofd_in_the_decoder_reads_both_places() -> None:
    assert list(distilled(preset='ofd', at='head').distillers) == [
        'head_ofd_aspp',
        'head_ofd_feature',
    ]


def reached(model: DistillSegmentor) -> dict[str, bool]:
    """Returns, by term, whether one step of it moves the student; its connectors always do."""
    found = {k: v for k, v in losses(model).items() if k.startswith('distill.')}
    student, added = list(model.student.parameters()), list(model.distillers.parameters())
    result = {}
    for name, value in found.items():
        to = torch.autograd.grad(value, [*student, *added], retain_graph=True, allow_unused=True)
        result[name] = any(g is not None and bool(g.any()) for g in to[: len(student)])
        assert any(g is not None and bool(g.any()) for g in to[len(student) :])
    return result


@pytest.mark.parametrize('at', ['backbone', 'head'])
def test_ofd_teaches_its_connectors_first(at: str) -> None:
    model = distilled(preset='ofd', at=at)
    widths = {
        key: (conv.weight.shape[1], conv.weight.shape[0])
        for key, distiller in model.distillers.items()
        for conv in [distiller.head.stu_connector.layers.conv]
    }
    assert at == 'backbone' or set(widths.values()) == {(16, 24)}
    for iteration, epoch, wanted in ((0, 0, False), (9, 0, False), (10, 1, True)):
        model.set_clock(iteration, epoch)
        assert set(reached(model).values()) == {wanted}


def test_where_nobody_counts_epochs_the_student_is_taught_and_it_is_said() -> None:
    from mmengine.logging import MMLogger

    model = distilled(preset='ofd')
    said: list[str] = []
    logger = MMLogger.get_current_instance()
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        assert all(reached(model).values()) and all(reached(model).values())
    finally:
        logger.removeHandler(handler)
    assert [s for s in said if 'which epoch' in s] == [
        'schedule: nobody tells the model which epoch it is in, so that schedules in epochs are '
        'left out. Train with densekd, or call set_clock(iteration, epoch).'
    ]


# Labels ------------------------------------------------------------------------------------------


def test_pixel_kd_counts_valid_pixels_alone() -> None:
    model = distilled(distillers=[entry('decode.logits', 'KD', 1.0)]).eval()
    data = batch(ignored=16)
    seen: dict[str, torch.Tensor] = {}
    head = model.distillers['head_kd_decode_logits'].head
    head.register_forward_hook(lambda m, a, out: seen.update(s=a[0], t=a[1]))
    value = losses(model, data)['distill.loss_head_kd_decode_logits']
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    valid[:, :4] = False
    torch.testing.assert_close(value, kd_loss(seen['s'], seen['t'], valid=valid))


def test_pixel_dkd_looks_up_the_labels_of_the_batch() -> None:
    model = distilled(distillers=[entry('decode.logits', 'DKD', 1.0)]).eval()
    data = batch(ignored=16)
    seen: dict[str, torch.Tensor] = {}
    head = model.distillers['head_dkd_decode_logits'].head
    head.register_forward_hook(lambda m, a, out: seen.update(s=a[0], t=a[1]))
    value = losses(model, data)['distill.loss_head_dkd_decode_logits']
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data['data_samples']])
    assert len(labels.unique()) > 2
    cells = labels[:, ::4, ::4]  # the head's stride
    torch.testing.assert_close(value, dkd_loss(seen['s'], seen['t'], cells))
    assert not torch.isclose(value, dkd_loss(seen['s'], seen['t'], cells.clamp(max=0)))


def test_dkd_leaves_out_pixels_of_classes_that_the_teacher_lacks() -> None:
    names, theirs = ['road', 'car', 'tree', 'sky'], ['sky', 'mud', 'road', 'car']
    teacher = dict(model=deeplabv3plus(8, 24), untrained=True, classes=theirs)
    model = distilled(
        distillers=[entry('decode.logits', 'DKD', 1.0)], teacher=teacher, classes=names
    ).eval()
    data = batch()
    seen: dict[str, torch.Tensor] = {}
    head = model.distillers['head_dkd_decode_logits'].head
    head.register_forward_hook(lambda m, a, out: seen.update(s=a[0], t=a[1]))
    for first in (1, 3):  # a car, then the sky, in place of the first image's first class
        data['data_samples'][0].gt_sem_seg.data[0, 32:] = first
        value = losses(model, data)['distill.loss_head_dkd_decode_logits']
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data['data_samples']])
        among = torch.tensor([0, 1, -1, 2])[labels.clamp(max=3)].masked_fill(labels > 3, -1)
        torch.testing.assert_close(value, dkd_loss(seen['s'], seen['t'], among[:, ::4, ::4]))


@pytest.mark.parametrize(
    'method', ['KD', 'DKD', 'DIST', 'CWD', 'SKDPairwise', 'SKDPixelwise', 'IFVD']
)
def test_what_stands_in_ignored_pixels_changes_nothing(method: str) -> None:
    model = distilled(distillers=[entry('decode.logits', method, 1.0)]).eval()
    values = []
    for junk in (0.0, 50.0):
        ready = prepared(model, batch(ignored=16))
        handles = [
            m.decode_head.conv_seg.register_forward_hook(
                lambda m, a, out, junk=junk: torch.cat([out[:, :, :4] + junk, out[:, :, 4:]], 2)
            )
            for m in (model.student, model.teachers['teacher'].model)
        ]
        found = model(ready['inputs'], ready['data_samples'], mode='loss')
        values.append(next(v for k, v in found.items() if k.startswith('distill.')))
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize(
    'method', ['KD', 'DKD', 'DIST', 'CWD', 'SKDPairwise', 'SKDPixelwise', 'IFVD']
)
def test_a_batch_without_a_labelled_pixel_gives_zero_and_no_nan(method: str) -> None:
    model = distilled(distillers=[entry('decode.logits', method, 1.0)])
    found = losses(model, batch(ignored=64))
    value = next(v for k, v in found.items() if k.startswith('distill.'))
    assert value.item() == 0 and value.requires_grad


def test_labels_that_the_student_does_not_know_are_refused() -> None:
    model = distilled(distillers=[entry('decode.logits', 'KD')])
    data = prepared(model, batch())
    data['data_samples'][0].gt_sem_seg.data[0, 20, 20] = 77
    fields = model.fields(data['inputs'], data['data_samples'], None, {})
    with pytest.raises(DataError, match='label 77.*0 to 3 and 255.*reduce_zero_label'):
        fields['valid']()


def test_classes_are_paired_by_name() -> None:
    names = ['road', 'car', 'tree', 'sky']
    order = [3, 1, 0, 2]
    theirs = [names[i] for i in order]
    teacher = dict(model=deeplabv3plus(8, 24), untrained=True, classes=theirs)
    model = distilled(
        distillers=[entry('decode.logits', 'KD', 1.0)], teacher=teacher, classes=names
    )
    raw: list[torch.Tensor] = []
    seen: dict[str, torch.Tensor] = {}
    other = model.teachers['teacher'].model.decode_head.conv_seg
    other.register_forward_hook(lambda m, a, out: raw.append(out))
    head = model.distillers['head_kd_decode_logits'].head
    head.register_forward_hook(lambda m, a, out: seen.update(s=a[0], t=a[1]))
    losses(model)
    assert torch.equal(seen['t'], raw[-1][:, [theirs.index(n) for n in names]])
    with pytest.raises(ConfigError, match='4 classes.*2'):
        distilled(classes=['road', 'car'])


def test_logits_of_unlike_counts_are_no_mere_channels() -> None:
    """With names they are paired; without, a connector between them would learn nonsense."""
    six = dict(model=deeplabv3plus(8, 24, 6), untrained=True)
    cwd = [entry('decode.logits', 'CWD')]
    with pytest.raises(
        ConfigError,
        match="'head_cwd_decode_logits': 'decode.logits' has 4 classes in the student and 6 in the "
        'teacher, .* Name the classes of both, as model.classes and teacher.classes, or compare',
    ):
        distilled(teacher=six, distillers=cwd)
    with pytest.raises(ShapeError, match='student has 4 classes and the teacher 6'):
        distilled(teacher=six, preset='kd')
    named = dict(six, classes=['sky', 'bus', 'car', 'road', 'sign', 'tree'])
    for distillers in (cwd, [entry('decode.logits', 'KD')]):
        paired = distilled(
            teacher=dict(named), distillers=distillers, classes=['road', 'car', 'tree', 'sky']
        )
        assert losses(paired) and not list(paired.distillers.parameters())
    assert losses(distilled(teacher=six, distillers=[entry('decode.feature', 'OFD')]))


def test_a_teacher_of_several_processes_is_the_one_that_was_saved(tmp_path: Path) -> None:
    """SyncBN, 'module.' before its keys, another palette, classes in an order of its own."""
    names = ['road', 'car', 'tree', 'sky']
    config = deeplabv3plus(8, 24)
    saved = build_network(dict(config), 'mmseg', 'teacher').eval()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in saved.modules())
    for module in saved.modules():
        if isinstance(module, nn.SyncBatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
    content = dict(
        state_dict={f'module.{k}': v for k, v in saved.state_dict().items()},
        meta=dict(CLASSES=names, PALETTE=[[1, 2, 3]] * 4),
    )
    torch.save(content, tmp_path / 'old.pth')
    content['meta'] = dict(dataset_meta=dict(classes=names, palette=[[9, 9, 9]] * 4))
    torch.save(content, tmp_path / 'new.pth')
    seen: dict[str, torch.Tensor] = {}
    for file, order in (('old.pth', [0, 1, 2, 3]), ('new.pth', [3, 0, 1, 2])):
        model = distilled(
            teacher=dict(model=dict(config), checkpoint=str(tmp_path / file)),
            distillers=[entry('decode.logits', 'KD')],
            classes=[names[i] for i in order],
        )
        head = model.distillers['head_kd_decode_logits'].head
        head.register_forward_hook(lambda m, a, out: seen.update(t=a[1]))
        data = prepared(model, batch())
        model(data['inputs'], data['data_samples'], mode='loss')
        with torch.no_grad():
            wanted = saved.decode_head(saved.extract_feat(data['inputs']))
        torch.testing.assert_close(seen['t'], wanted[:, order], rtol=1e-4, atol=1e-5)


def test_weights_that_a_teachers_config_names_are_not_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own checkpoint brings all of them; and the student's are only asked for by a runner."""
    monkeypatch.setattr('socket.socket.connect', lambda *_: pytest.fail('it went to the network'))
    config = dict(deeplabv3plus(8, 24), pretrained='open-mmlab://resnet18_v1c')
    model = distilled(teacher=dict(model=config, untrained=True), preset='kd')
    model.init_weights()
    assert losses(model)
    for module in model.teachers['teacher'].model.modules():
        init = getattr(module, 'init_cfg', None)
        assert 'Pretrained' not in str(init)


# Invariants --------------------------------------------------------------------------------------


@every
def test_weight_0_is_plain_training(name: str) -> None:
    torch.manual_seed(0)
    alone = plain(name)
    torch.manual_seed(0)
    beside = distilled(name, weights=0.0)
    assert not unlike(state(alone), state(beside.student))
    data = [batch(seed) for seed in range(4)]
    for model in (alone, beside):
        train_on(model, copy.deepcopy(data), ADAMW)
    assert not unlike(state(alone), state(beside.student))
    assert list(beside.state_dict()) == list(alone.state_dict())


def test_every_added_parameter_moves_and_the_teacher_does_not() -> None:
    model = distilled()
    before = {k: v.detach().clone() for k, v in model.distillers.named_parameters()}
    teacher = state(model.teachers['teacher'].model)
    train_on(model, [batch(seed) for seed in range(2)])
    still = [k for k, v in model.distillers.named_parameters() if torch.equal(v, before[k])]
    assert before and not still
    assert not unlike(teacher, state(model.teachers['teacher'].model))


def test_the_total_is_what_a_runner_sums() -> None:
    model = distilled()
    found = losses(model)
    total, _ = model.parse_losses(found)
    parts = sum(v for k, v in found.items() if 'loss' in k)
    torch.testing.assert_close(total, parts)


def test_a_head_takes_any_loss() -> None:
    head = DistillationHead(loss=dict(type='FitNetLoss'), name='any')
    model = distilled(distillers=[dict(student_module='aux.logits', head=head)])
    assert losses(model)['distill.loss_head_any'] > 0
