"""Peers and averages beside a classifier: who teaches whom, what moves, what is left as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from densekd import DistillClassifier
from densekd.engine.optim import build_for_distillation
from densekd.errors import CheckpointError, ConfigError, ShapeError
from densekd.wrappers.build import build_network
from densekd.wrappers.detector import DistillDetector
from tests.helpers.classifiers import batch, classifier
from tests.helpers.detectors import entry, retinanet, state, unlike

TWO = [dict(name='b', model=classifier(base_channels=8)), dict(name='c', model=classifier())]
ADAM = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=0.5),
)


def mutual(peers: Any = TWO, weight: float = 1.0, **more: Any) -> DistillClassifier:
    """Returns a student beside peers, seeded, all of whose logits say something."""
    torch.manual_seed(0)
    model = DistillClassifier(
        **{'student': classifier(), 'peers': copy.deepcopy(peers), 'preset': 'dml', **more}
    )
    for network in (model.student, *model.peers.values()):
        with torch.no_grad():
            network.head.fc.weight.mul_(50)
    for distiller in model.distillers.values():
        distiller.head.loss.loss_weight = weight
    return model


def losses_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    model.train()
    return model(**model.data_preprocessor(batch(seed), True), mode='loss')


def trained(model: nn.Module, steps: int = 3, config: Any = ADAM) -> Any:
    """Trains as a runner does, and returns the optimiser wrapper."""
    wrapper = build_for_distillation(model, config)
    for seed in range(steps):
        model.train()
        model.train_step(batch(seed), wrapper)
    return wrapper


# Mutual learning --------------------------------------------------------------------------------


def test_each_network_learns_from_the_mean_divergence_of_the_others() -> None:
    model = mutual()
    losses = {k: v.detach() for k, v in losses_of(model).items()}
    names = ['student', 'b', 'c']
    data = model.data_preprocessor(batch(), True)
    networks = [model.student, *model.peers.values()]
    logits = [network(data['inputs']).detach().double() for network in networks]
    labels = torch.tensor([int(s.gt_label) for s in data['data_samples']])
    for k, name in enumerate(names):
        own = 'student.loss_cls' if name == 'student' else f'peer.{name}.loss_cls'
        expected = F.cross_entropy(logits[k], labels)
        assert float(losses[own]) == pytest.approx(float(expected), rel=1e-5)
        terms = []
        for j in range(3):
            if j != k:
                p, q = logits[j].softmax(1), logits[k].softmax(1)
                terms.append((p * (p.log() - q.log())).sum(1).mean())
        key = 'distill.loss_head_dml' + ('' if name == 'student' else f'_{name}')
        assert float(losses[key]) == pytest.approx(float(sum(terms) / 2), rel=1e-4)
        assert float(losses[key]) > 0.01
    assert len(losses) == 6


def test_gradients_of_one_networks_loss_never_reach_another() -> None:
    model = mutual()
    losses = losses_of(model)
    networks = {'student': model.student, **model.peers}
    for key, value in losses.items():
        owner = key.split('.')[1] if key.startswith('peer.') else 'student'
        owner = key.rpartition('_')[2] if key.endswith(('_b', '_c')) else owner
        for name, network in networks.items():
            found = torch.autograd.grad(
                value, list(network.parameters()), retain_graph=True, allow_unused=True
            )
            reached = [g is not None and bool(g.any()) for g in found]
            assert all(g is None for g in found) if name != owner else any(reached), (key, name)


def test_each_peer_is_in_one_group_of_its_own_and_moves() -> None:
    model = mutual([*TWO, dict(name='mean', ema=0.9)], preset=None, distillers=[
        dict(student_module='backbone.c4', teacher='b', head='FitNetDistillationHead'),
        dict(student_module='logits', teacher=['c', 'mean'], head='KDDistillationHead'),
    ])  # fmt: skip
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    wrapper = trained(model, 1)
    groups = [[id(p) for p in g['params']] for g in wrapper.optimizer.param_groups]
    place = {}
    for name, parameter in model.named_parameters():
        found = [i for i, group in enumerate(groups) if id(parameter) in group]
        assert len(found) == 1, name
        place[found[0]] = place.get(found[0], set()) | {'.'.join(name.split('.')[:2])}
        assert not torch.equal(parameter, before[name]), name
    parts = {n for names in place.values() for n in names}
    assert {'peers.b', 'peers.c', 'distillers.backbone_fitnet_c4'} <= parts
    for names in place.values():  # nobody shares a group with a peer or a distiller
        assert len(names) == 1 or not any(n.startswith(('peers.', 'distillers.')) for n in names)
    mean = {id(p) for p in model.teachers['mean'].model.parameters()}
    assert not mean & {i for group in groups for i in group}


@pytest.mark.parametrize('who', ['student', 'b'])
def test_at_weight_0_each_network_trains_as_if_alone(who: str) -> None:
    """To the bit, clipping by norms and groups without decay included; and with peers not."""
    states = {}
    for weight in (None, 0.0, 1.0):
        model: Any = mutual(weight=weight or 0.0)
        network = model.student if who == 'student' else model.peers[who]
        if weight is None:
            # The same first weights, alone.
            from mmengine.optim import build_optim_wrapper

            wrapper = build_optim_wrapper(network, copy.deepcopy(ADAM))
            for seed in range(3):
                network.train().train_step(batch(seed), wrapper)
        else:
            trained(model)
        states[weight] = state(network)
    assert unlike(states[None], states[0.0]) == []
    assert unlike(states[None], states[1.0])


def test_the_student_starts_as_in_plain_training_and_peers_start_otherwise() -> None:
    torch.manual_seed(3)
    alone = build_network(classifier(), 'mmengine', 'student')
    drawn = torch.rand(3)
    torch.manual_seed(3)
    peers = [dict(name='b', model=classifier()), dict(name='c', model=classifier())]
    model = DistillClassifier(student=classifier(), peers=peers, preset='dml')
    assert torch.equal(torch.rand(3), drawn)
    assert unlike(state(alone), state(model.student)) == []
    b, c = model.peers['b'], model.peers['c']
    for first, second in ((b, c), (b, model.student), (c, model.student)):
        key = 'backbone.conv1.weight'
        assert not torch.equal(first.state_dict()[key], second.state_dict()[key])


def test_what_a_peer_draws_does_not_shift_the_student() -> None:
    model = mutual()
    peer = model.peers['b']
    peer.pool = nn.Sequential(peer.pool, nn.Dropout(0.5))
    found = []
    for iteration in (0, 0, 1):
        model.set_clock(iteration, 0)
        torch.manual_seed(5)
        found.append(float(losses_of(model)['peer.b.loss_cls'].detach()))
        drawn = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(torch.rand(3), drawn)
    # What it draws depends on the iteration, so that a resumed run draws the same.
    assert found[0] == found[1] != found[2]


def test_the_state_dict_is_the_students_alone() -> None:
    model = mutual([*TWO, dict(name='mean', ema=0.9)], preset=None, distillers=[
        entry('logits', 'KD', teacher=['b', 'c', 'mean'])
    ])  # fmt: skip
    saved = model.state_dict()
    plain = build_network(classifier(), 'mmengine', 'student')
    assert list(saved) == list(plain.state_dict())
    assert plain.load_state_dict(saved, strict=True)
    peers = {name: state(peer) for name, peer in model.peers.items()}
    assert model.load_state_dict(plain.state_dict(), strict=True)
    assert all(unlike(peers[n], state(p)) == [] for n, p in model.peers.items())


def test_all_that_changes_goes_on_from_a_checkpoint() -> None:
    peers = [*TWO, dict(name='mean', ema=0.9)]
    distillers = [
        entry('logits', 'KD', teacher=['b', 'mean']),
        entry('logits', 'KD', teacher='student', student='c'),
    ]
    first = mutual(peers, preset=None, distillers=distillers)
    trained(first)
    second = mutual(peers, preset=None, distillers=distillers, seed=7)
    second.load_state_dict(first.state_dict())
    second.load_distillation_state(copy.deepcopy(first.distillation_state()))
    for name in ('b', 'c'):
        assert unlike(state(first.peers[name]), state(second.peers[name])) == []
    for model in (first, second):
        trained(model, 1)
    assert unlike(state(first.student), state(second.student)) == []
    for name in ('b', 'c'):
        assert unlike(state(first.peers[name]), state(second.peers[name])) == []
    means = [m.teachers['mean'].model for m in (first, second)]
    assert unlike(state(means[0]), state(means[1])) == []


# The average ------------------------------------------------------------------------------------


def averaged(**more: Any) -> DistillClassifier:
    return mutual([dict(name='mean', ema=0.5)], **{'preset': 'kd', **more})


def test_an_average_teaches_and_follows_after_each_step() -> None:
    model = averaged()
    mean = model.teachers['mean']
    # Weights that come after it was made, as a run's load_from brings them.
    with torch.no_grad():
        model.student.head.fc.bias.add_(1.0)
    start = state(model.student)
    losses = losses_of(model)
    assert unlike(start, {**state(mean.model), **{k: v for k, v in start.items() if 'running' in k
                   or 'num_batches' in k}}) == []  # fmt: skip
    assert list(losses) == ['student.loss_cls', 'distill.loss_head_kd']
    data = model.data_preprocessor(batch(), True)
    theirs, own = mean.model(data['inputs']), model.student(data['inputs'])
    p = (theirs / 4).softmax(1)
    expected = 0.9 * 16 * (p * (p.log() - (own / 4).log_softmax(1))).sum(1).mean()
    for distiller in model.distillers.values():
        distiller.head.loss.loss_weight = 0.9
    assert float(losses_of(model)['distill.loss_head_kd']) == pytest.approx(
        float(expected), rel=1e-4
    )
    before = state(model.student)['head.fc.bias']
    wrapper = trained(model, 1)
    assert mean.steps == 1
    after = state(model.student)['head.fc.bias']
    torch.testing.assert_close(state(mean.model)['head.fc.bias'], (before + after) / 2)
    assert not torch.equal(before, after)
    assert not any(m.training for m in mean.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in mean.model.parameters())
    assert wrapper


def test_an_average_is_met_by_nothing_that_walks_the_model_and_moves_with_it() -> None:
    model = averaged()
    theirs = {t.data_ptr() for t in state_tensors(model.teachers['mean'].model)}
    assert not theirs & {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert not theirs & {t.data_ptr() for t in model.state_dict().values()}
    model.double()
    assert {p.dtype for p in model.teachers['mean'].model.parameters()} == {torch.float64}


def state_tensors(network: nn.Module) -> list[Tensor]:
    return [t for t in network.state_dict().values() if t.numel()]


def test_a_copy_does_not_move_the_average() -> None:
    model = averaged()
    losses_of(model)
    twin = copy.deepcopy(model)
    before = state(model.teachers['mean'].model)
    twin.after_step()
    assert unlike(before, state(model.teachers['mean'].model)) == []
    model.after_step()
    assert model.teachers['mean'].steps == 1


# Several frozen teachers ------------------------------------------------------------------------


def several(**more: Any) -> list[dict[str, Any]]:
    return [
        dict(name='wide', model=classifier(base_channels=8), untrained=True),
        dict(name='deep', model=classifier(depth=14), untrained=True),
    ]


@pytest.mark.parametrize('mode', ['mean_prob', 'mean_logit'])
def test_two_frozen_teachers_are_the_mixture_that_their_logits_make(mode: str) -> None:
    head = dict(type='KDDistillationHead', loss=dict(mode=mode, loss_weight=1.0, tau=2.0))
    place = dict(student_module='logits', teacher=['wide', 'deep'])
    torch.manual_seed(0)
    model = DistillClassifier(
        student=classifier(), teacher=several(), distillers=[dict(**place, head=head)]
    )
    for i, teacher in enumerate(model.teachers.values()):
        with torch.no_grad():
            teacher.model.head.fc.weight.mul_(100.0 * (i + 1))
    losses = losses_of(model)
    inputs = model.data_preprocessor(batch(), True)['inputs']
    a, b = (t.model(inputs).double() / 2.0 for t in model.teachers.values())
    q = (model.student(inputs).double() / 2.0).log_softmax(1)
    probabilities = (a.softmax(1) + b.softmax(1)) / 2
    p = probabilities if mode == 'mean_prob' else ((a + b) / 2).softmax(1)
    expected = 4.0 * (p * (p.log() - q)).sum(1).mean()
    found = losses['distill.loss_head_kd_logits']
    assert float(found) == pytest.approx(float(expected), rel=1e-4) and float(found) > 0.01


def test_the_preset_of_several_teachers_reads_all_of_them() -> None:
    model = DistillClassifier(student=classifier(), teacher=several(), preset='kd')
    (distiller,) = model.distillers.values()
    assert distiller.teachers == ('wide', 'deep')
    with pytest.raises(ConfigError, match=r"preset 'at': with several teachers, .*several: .*kd"):
        DistillClassifier(student=classifier(), teacher=several(), preset='at')


def test_a_teacher_of_other_classes_is_found_behind_the_first() -> None:
    teachers = several()
    teachers[1]['model'] = classifier(classes=9)
    with pytest.raises(ShapeError, match='the student has 6 classes and the teacher 9'):
        DistillClassifier(student=classifier(), teacher=teachers, preset='kd')


# What is refused --------------------------------------------------------------------------------

MODEL = classifier()
FROZEN = dict(model=classifier(), untrained=True)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (dict(teacher=FROZEN, preset='dml'), 'a teacher with a checkpoint learns nothing'),
        (dict(teacher=FROZEN, preset='dml', peers=TWO), 'has no use for teacher'),
        (dict(preset='dml', peers=dict(name='mean', ema=0.9)), r'Give peers=\[dict'),
        (dict(preset='kd', peers=[]), 'peers: a list such as'),
        (dict(preset='kd', peers=['b']), r'peers\[0\]: a dict is needed'),
        (dict(preset='kd', peers=[dict(model=MODEL)]), r"peers\[0\]: a 'name' of letters"),
        (dict(preset='kd', peers=[dict(name='b')]), r'peers\[0\]: give model=… .* or ema='),
        (dict(preset='kd', peers=[dict(name='b', models=MODEL)]), "no key 'models'. Did you mean"),
        (dict(preset='kd', peers=[dict(name='student', ema=0.9)]), "name 'student' is used"),
        (dict(preset='kd', peers=[dict(name='items', ema=0.9)]), "name 'items' is used already"),
        (dict(preset='dml', peers=[TWO[0], TWO[0]]), r"peers\[1\]: the name 'b' is used already"),
        (dict(preset='kd', peers=[dict(name='m', ema=0.9, model=MODEL)]), 'Give name and ema'),
        (dict(preset='kd', peers=[dict(name='m', ema=9)]), 'ema is the share'),
        (
            dict(teacher=[FROZEN, FROZEN], preset='kd'),
            r"teacher\[0\]: with several teachers each needs a 'name'",
        ),
        (
            dict(peers=TWO, distillers=[entry('logits', 'KD')]),
            r"several teachers \(b, c\), so 'teacher' must",
        ),
        (
            dict(peers=TWO, distillers=[entry('logits', 'KD', teacher='b', student='d')]),
            r"distillers\[0\].student: there is no network 'd' that trains",
        ),
        (
            dict(peers=TWO, distillers=[entry('logits', 'KD', teacher='b', student='b')]),
            "'b' can't teach itself",
        ),
        (
            dict(peers=TWO, distillers=[entry('logits', 'KD', teacher='b')]),
            "no distiller reads 'c'",
        ),
        (
            dict(peers=TWO, distillers=[entry('logits', 'KD', teacher=['b', 'b'])]),
            'name each teacher once',
        ),
        (dict(peers=TWO, preset='dml', trainable=['backbone']), 'train: where a part'),
        (dict(peers=TWO, preset='dml', inherit=['head']), 'inherit: one teacher is needed'),
    ],
)
def test_what_is_wrong_is_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        DistillClassifier(student=classifier(), **arguments)
    assert '\n' not in str(caught.value)


def test_weights_that_a_peer_would_fetch_are_refused() -> None:
    fetching = classifier()
    fetching['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='http://nowhere/x.pth')
    with pytest.raises(
        ConfigError, match=r'are not fetched for a peer. Give peers\[0\].checkpoint'
    ):
        mutual([dict(name='b', model=fetching)])


def test_a_peer_may_start_from_a_checkpoint(tmp_path: Any) -> None:
    network = build_network(classifier(), 'mmengine', 'peer')
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'b.pth')
    peer = dict(name='b', model=classifier(), checkpoint=str(tmp_path / 'b.pth'))
    model = DistillClassifier(student=classifier(), peers=[peer], preset='dml')
    assert unlike(state(network), state(model.peers['b'])) == []


def test_a_checkpoint_of_other_peers_is_a_sentence() -> None:
    saved = mutual().distillation_state()
    with pytest.raises(CheckpointError, match=r'other distillers'):
        mutual(TWO[:1]).load_distillation_state(saved)
    wider = [dict(name='b', model=classifier(base_channels=6)), TWO[1]]
    with pytest.raises(CheckpointError, match=r"another peer 'b': .* does not fit"):
        mutual(wider).load_distillation_state(saved)
    changed = copy.deepcopy(saved)
    changed['peers'].pop('c')
    with pytest.raises(
        CheckpointError, match=r'written with peers b, and the config has peers b, c'
    ):
        mutual().load_distillation_state(changed)


def test_detectors_have_no_peers() -> None:
    with pytest.raises(ConfigError, match='mutual learning and moving teachers are for the class'):
        DistillDetector(student=retinanet(), peers=TWO, preset='kd')


def test_a_translator_for_each_of_several_teachers_learns() -> None:
    torch.manual_seed(0)
    model = DistillClassifier(student=classifier(), teacher=several(), preset='feed')
    (distiller,) = model.distillers.values()
    assert distiller.teachers == ('wide', 'deep')
    before = state(model.distillers)
    assert list(losses_of(model)) == ['student.loss_cls', 'distill.loss_backbone_feed']
    trained(model, 1)
    after = state(model.distillers)
    assert len({k.split('.')[4] for k in after if 'translators' in k}) == 2
    assert all(not torch.equal(before[k], after[k]) for k in after if k.endswith('weight'))
    for teacher in model.teachers.values():
        assert not any(m.training for m in teacher.model.modules())


HOW = ('as densekd', 'as a stock runner', 'by a wrapper around the model')


@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('gathered', [1, 2, 3])
def test_an_average_follows_steps_and_not_iterations(gathered: int, how: str) -> None:
    """Against one by hand; the fifth iteration ends the last window, which is not full."""
    model = averaged()
    mean = model.teachers['mean']
    mean.decay = 0.6
    config = dict(copy.deepcopy(ADAM), accumulative_counts=gathered)
    build = build_optim_wrapper if how == HOW[1] else build_for_distillation
    wrapper = build(model, config)
    wrapper.initialize_count_status(model, 0, 5)
    expected, steps = state(model.student)['head.fc.weight'], 0
    for i in range(1, 6):
        model.train()
        if how == HOW[2]:
            losses = model(**model.data_preprocessor(batch(i), True), mode='loss')
            wrapper.update_params(model.parse_losses(losses)[0])
            model.after_step()
        else:
            model.train_step(batch(i), wrapper)
        if i % gathered == 0 or i == 5:
            steps += 1
            keep = min(1 - 1 / (steps + 1), 0.6)
            expected = keep * expected + (1 - keep) * state(model.student)['head.fc.weight']
        assert mean.steps == steps
        torch.testing.assert_close(state(mean.model)['head.fc.weight'], expected)
