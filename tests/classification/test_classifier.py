"""A classifier's modes, its checkpoint, its losses; batches normalised and mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement

from densekd.classification.classifier import ImageClassifier
from densekd.classification.heads import LinearHead
from densekd.classification.mixing import cutmix, mixup, shares_of
from densekd.classification.networks import CifarResNet
from densekd.classification.preprocessor import ImagePreprocessor
from densekd.errors import ConfigError, DataError
from densekd.wrappers.build import build_network
from tests.helpers.classifiers import CLASSES, batch, classifier


def built(**more: Any) -> Any:
    return build_network(classifier(**more), 'mmengine', 'model')


def test_the_checkpoint_has_plain_keys() -> None:
    keys = list(built().state_dict())
    assert {key.split('.')[0] for key in keys} == {'backbone', 'head'}
    assert 'backbone.layer3.0.conv2.weight' in keys and 'head.fc.bias' in keys


def test_modes_agree_with_each_other() -> None:
    model = built().eval()
    data = model.data_preprocessor(batch(), False)
    logits = model(**data)
    assert torch.equal(logits, model.head.fc(model.backbone(data['inputs'])[-1].mean((2, 3))))
    labels = torch.tensor([int(s.gt_label) for s in data['data_samples']])
    losses = model(**data, mode='loss')
    assert losses.keys() == {'loss_cls'}
    assert torch.allclose(losses['loss_cls'], F.cross_entropy(logits, labels))
    samples = model(**data, mode='predict')
    assert torch.allclose(torch.stack([s.pred_score for s in samples]), logits.softmax(1))
    assert [int(s.pred_label) for s in samples] == logits.argmax(1).tolist()
    with pytest.raises(ConfigError, match="not 'train'"):
        model(**data, mode='train')


def test_label_smoothing_is_torchs_own() -> None:
    head = LinearHead(CLASSES, 4, label_smoothing=0.1, loss_weight=2.0)
    logits, labels = torch.randn(5, CLASSES), torch.randint(0, CLASSES, (5,))
    smooth = 0.9 * shares_of(labels, CLASSES) + 0.1 / CLASSES
    expected = -2.0 * (smooth * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(head.loss(logits, labels), expected)
    assert torch.allclose(head.loss(logits, shares_of(labels, CLASSES)), expected)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (dict(num_classes=1, in_channels=4), 'num_classes is 1; two classes are needed'),
        (dict(num_classes=3, in_channels=4, label_smoothing=1.5), 'is a share from 0 to 1'),
        *(
            (dict(num_classes=value, in_channels=4), 'num_classes is a whole number above 1, not ')
            for value in ('3', 3.0, None, True)
        ),
    ],
)
def test_a_head_that_is_wrong_is_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        LinearHead(**arguments)


def test_a_backbone_that_does_not_say_its_channels() -> None:
    with pytest.raises(ConfigError, match=r'Flatten does not say .* Give head.in_channels'):
        ImageClassifier(torch.nn.Flatten(), dict(type='densekd.LinearHead', num_classes=3))


def test_a_name_that_is_misspelt_is_a_sentence() -> None:
    config = classifier()
    config['backbone']['type'] = 'densekd.CifarResNt'
    with pytest.raises(ConfigError, match=r"no model 'CifarResNt'. Did you mean 'CifarResNet'"):
        build_network(config, 'mmengine', 'model')


def test_images_are_normalised() -> None:
    preprocessor = ImagePreprocessor(mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 5.0])
    data = preprocessor(batch(), True)
    images = torch.stack(batch()['inputs']).float()
    expected = (images - torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1)) / torch.tensor(
        [2.0, 4.0, 5.0]
    ).view(3, 1, 1)
    assert torch.allclose(data['inputs'], expected)


def test_channels_last_reaches_every_map_and_changes_nothing() -> None:
    network = CifarResNet(depth=8, base_channels=4).eval()
    maps = []
    for last in (False, True):
        images = ImagePreprocessor(channels_last=last)(batch())['inputs']
        found = [images, *network(images)]
        layout = torch.channels_last if last else torch.contiguous_format
        assert all(x.is_contiguous(memory_format=layout) for x in found)
        maps.append(found)
    for first, second in zip(*maps, strict=True):
        torch.testing.assert_close(first, second)


def test_unlike_sizes_are_a_sentence() -> None:
    data = batch()
    data['inputs'][1] = data['inputs'][1][:, :20]
    with pytest.raises(DataError, match=r'unlike sizes \(20x32 and 32x32\)'):
        ImagePreprocessor()(data)


NORM = 'mean and std are each three numbers, one a channel, or both None, and '
COUNT = 'num_classes is a whole number above 1, not '
MIX = 'mixup and cutmix are 0 or more, and mix_prob is from 0 to 1'
UNUSABLE: list[tuple[dict[str, Any], str]] = [
    (dict(mean=[1.0, 2.0, 3.0]), NORM + 'std is None'),
    (dict(std=[1.0, 2.0, 3.0]), NORM + 'mean is None'),
    (dict(mean=[1.0], std=[1.0, 2.0, 3.0]), NORM + 'mean is'),
    (dict(mean=[1.0, 2.0, 3.0], std=[1.0]), NORM + 'std is'),
    (dict(mean=120.0, std=60.0), NORM + 'mean is 120.0'),
    (dict(mean='123', std=[1.0, 2.0, 3.0]), NORM + "mean is '123'"),
    (dict(mean=[float('nan')] * 3, std=[1.0, 2.0, 3.0]), NORM + 'mean is'),
    (dict(mean=[0.0] * 3, std=[1.0, 0.0, 1.0]), 'divided by std, whose values are above 0'),
    (dict(mean=[0.0] * 3, std=[1.0, -2.0, 1.0]), 'divided by std, whose values are above 0'),
    *((dict(mixup=0.2, num_classes=k), COUNT) for k in (0, 1, -3, 10.0, '10', True)),
    (dict(cutmix=0.2, num_classes=1), COUNT),
    (dict(mixup='0.2', num_classes=3), MIX),
    (dict(cutmix=-1.0, num_classes=3), MIX),
    (dict(mix_prob=1.5), MIX),
]


@pytest.mark.parametrize(('arguments', 'sentence'), UNUSABLE)
def test_a_preprocessor_that_is_wrong_is_a_sentence(
    arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=f'^data_preprocessor: .*{sentence}'):
        ImagePreprocessor(**arguments)


def test_a_batch_that_was_not_packed_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match='the pipeline must end with densekd.PackImage'):
        ImagePreprocessor()({'img': [np.zeros((4, 4, 3))], 'gt_label': [0]}, True)


@pytest.mark.parametrize('how', ['mixup', 'cutmix'])
def test_shares_are_those_of_the_pixels(how: str) -> None:
    """Each image has one value, its class: the mean of what comes out says the shares."""
    np.random.seed(0)
    labels = torch.arange(4)
    images = labels.view(4, 1, 1, 1).float().expand(4, 3, 8, 8)
    for _ in range(5):
        mixed, shares = {'mixup': mixup, 'cutmix': cutmix}[how](images, shares_of(labels, 4), 1.0)
        assert torch.allclose(shares.sum(1), torch.ones(4))
        assert torch.allclose(mixed.mean((1, 2, 3)), shares @ labels.float(), atol=1e-5)


def test_only_training_mixes_and_the_head_learns_the_shares() -> None:
    np.random.seed(0)
    preprocessor = ImagePreprocessor(mixup=0.8, cutmix=1.0, num_classes=CLASSES)
    assert preprocessor.mixes
    assert 'gt_score' not in preprocessor(batch(), False)['data_samples'][0]
    model = ImageClassifier(CifarResNet(8, 4), LinearHead(CLASSES, 16), None, preprocessor).eval()
    data = preprocessor(batch(), True)
    assert not torch.equal(data['inputs'], torch.stack(batch()['inputs']).float())
    shares = torch.stack([s.gt_score for s in data['data_samples']])
    expected = -(shares * model(data['inputs']).log_softmax(1)).sum(1).mean()
    assert torch.allclose(model(**data, mode='loss')['loss_cls'], expected)
    with pytest.raises(ConfigError, match='to mix images, give num_classes'):
        ImagePreprocessor(mixup=0.2)


def test_never_mixing_is_no_mixing() -> None:
    preprocessor = ImagePreprocessor(mixup=0.8, mix_prob=0.0, num_classes=CLASSES)
    data = preprocessor(batch(), True)
    assert not preprocessor.mixes
    assert not any('gt_score' in s for s in data['data_samples'])
    assert isinstance(data['data_samples'][0], BaseDataElement)
