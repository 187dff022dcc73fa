"""LSL: which layers are chosen, and projections that can't collapse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from densekd.core.taps import Tap
from densekd.errors import ConfigError, ShapeError
from densekd.methods import (
    LayerSelector,
    LSLDistillationHead,
    LSLLoss,
    ProjectionConnector,
    class_likeness,
    layer_likeness,
    lsl_loss,
)

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def chosen(count: int, **means: Tensor) -> list[str]:
    selector = LayerSelector()
    selector.update({name: mean[LABELS] for name, mean in means.items()}, LABELS)
    return selector.select(count)


# The choice of layers


def test_likeness_at_its_ends() -> None:
    assert class_likeness(torch.eye(4)).item() == 0
    assert class_likeness(torch.rand(1, 4).expand(3, 4)).item() == pytest.approx(1.0)
    means = torch.randn(4, 3).double()
    turned = means @ torch.linalg.qr(torch.randn(3, 3).double())[0]
    assert layer_likeness(means, 5 * turned + 2).item() == pytest.approx(1.0)
    one, other = torch.zeros(4, 1), torch.zeros(4, 1)
    one[0], one[1], other[2], other[3] = 1, -1, 1, -1  # what each tells apart is alike in the other
    assert layer_likeness(one, other).item() == 0


def test_the_layer_that_tells_classes_apart_is_chosen() -> None:
    nearly = torch.ones(3, 3) + 0.1 * torch.eye(3)
    assert chosen(1, shallow=nearly, middle=torch.eye(3) + 0.5, deep=torch.eye(3)) == ['deep']


def test_of_layers_that_are_as_good_those_that_differ_are_chosen() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # class 0 from the others
    same = first.flip(1)
    other = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # class 2 from the others
    assert chosen(2, first=first, same=same, other=other) == ['first', 'other']
    assert chosen(3, first=first, same=same, other=other) == ['first', 'same', 'other']


def test_the_means_are_those_of_all_batches() -> None:
    numbers = torch.randn(12, 3, 2, 2)
    labels = torch.tensor([0, 1, 2, 5] * 3)
    whole, parts = LayerSelector(), LayerSelector()
    whole.update({'x': numbers}, labels)
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        parts.update({'x': numbers[part]}, labels[part])
    expected = torch.stack([numbers[labels == k].double().mean((0, 2, 3)) for k in (0, 1, 2, 5)])
    torch.testing.assert_close(whole.means()['x'], expected)
    torch.testing.assert_close(parts.means()['x'], expected)
    assert whole.class_likeness().keys() == {'x'}


def test_a_network_is_read_as_it_is_used_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3))
    network[1].eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    images = torch.randn(6, 3, 8, 8)
    taps = {'relu': Tap('2'), 'last': Tap('3')}
    selector = LayerSelector().read(
        network, taps, [(images[:4], LABELS[:4]), (images[4:], LABELS[4:])]
    )
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    network.eval()
    with torch.no_grad():
        pooled = network(images).mean((2, 3)).double()
    expected = torch.stack([pooled[k == LABELS].mean(0) for k in range(3)])
    torch.testing.assert_close(selector.means()['last'], expected, rtol=1e-5, atol=1e-6)
    assert set(selector.select(2)) == {'relu', 'last'}


def test_what_can_not_be_chosen_from_is_refused() -> None:
    selector = LayerSelector()
    with pytest.raises(ConfigError, match='has seen images of 0'):
        selector.select(1)
    selector.update({'a': torch.ones(2, 3)}, torch.tensor([1, 1]))
    with pytest.raises(ConfigError, match='it compares classes, and has seen images of 1'):
        selector.class_likeness()
    with pytest.raises(ShapeError, match='the layers are b, and were a'):
        selector.update({'b': torch.ones(2, 3)}, torch.tensor([0, 1]))
    with pytest.raises(ShapeError, match=r'a has 2 images, and the labels are \(3,\)'):
        selector.update({'a': torch.ones(2, 3)}, torch.tensor([0, 1, 2]))
    selector.update({'a': torch.ones(2, 3)}, torch.tensor([0, 2]))
    for count in (0, 2):
        with pytest.raises(ConfigError, match=f'{count} layers of 1 can not be chosen'):
            selector.select(count)
    with pytest.raises(ShapeError, match='two classes or more'):
        class_likeness(torch.ones(1, 3))
    with pytest.raises(ShapeError, match='means of the same classes'):
        layer_likeness(torch.ones(2, 3), torch.ones(3, 3))


# The alignment


def test_lsl_is_a_correlation() -> None:
    s, t = torch.randn(7, 3).double(), torch.randn(7, 3).double()
    each = [torch.corrcoef(torch.stack([s[:, d], t[:, d]]))[0, 1] for d in range(3)]
    expected = 2 - 2 * torch.stack(each).mean()
    torch.testing.assert_close(lsl_loss(s, t, eps=0.0), expected)
    torch.testing.assert_close(lsl_loss(3 * s + 1, 0.1 * t - 2, eps=0.0), expected)


def test_heads_that_map_all_images_to_one_point_gain_nothing() -> None:
    t = torch.randn(16, 4)
    flat = lsl_loss(torch.ones(16, 4), t).item()
    assert flat == pytest.approx(1.0, rel=1e-3)
    assert lsl_loss(torch.ones(16, 4), torch.zeros(16, 4)).item() == 0
    assert lsl_loss(t + 0.1 * torch.randn(16, 4), t).item() < 0.1


def test_the_students_projection_learns_and_the_teachers_does_not() -> None:
    torch.manual_seed(0)
    head = LSLDistillationHead()
    teacher = torch.randn(32, 6, 3, 3)
    student = teacher.mean((2, 3))[:, :4] @ torch.randn(4, 4)
    student = student[:, :, None, None].expand(32, 4, 2, 2)
    head(student, teacher)
    assert head.stu_connector.layer.weight.shape == (4, 4)  # the smaller of 4 and 6
    assert head.tea_connector.layer.weight.shape == (4, 6)
    rows = head.tea_connector.layer.weight
    torch.testing.assert_close(rows @ rows.T, torch.eye(4))
    before = rows.clone()
    trained = [p for p in head.parameters() if p.requires_grad]
    assert len(trained) == 1
    optimizer = torch.optim.Adam(trained, lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = head(student, teacher)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]
    assert torch.equal(head.tea_connector.layer.weight, before)


def test_a_constant_dimension_and_one_image_harm_nothing() -> None:
    for s in (torch.ones(4, 3), torch.randn(1, 3)):
        x = s.requires_grad_()
        lsl_loss(x, torch.randn(s.shape)).backward()
        assert x.grad is not None and x.grad.isfinite().all()
    with pytest.raises(ShapeError, match='the student has 3 channels and the teacher 4'):
        lsl_loss(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ConfigError, match='eps keeps a variance from 0'):
        LSLLoss(eps=0.0)
    with pytest.raises(ConfigError, match='out_channel=0 is not positive'):
        ProjectionConnector(out_channel=0)
