"""OFD on DeepLabV3+ beside a network built by hand of functions that overwrite nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densekd.wrappers.build import build_network
from densekd.wrappers.segmentor import DistillSegmentor
from tests.helpers.detectors import prepared
from tests.helpers.segmentors import batch, deeplabv3plus

# The factors of the preset: each stage has half of the next one's, the last convolution of the
# decoder a sixteenth of the pyramid's.
FACTORS = {
    'backbone': {'c2': 1 / 8, 'c3': 1 / 4, 'c4': 1 / 2, 'c5': 1.0},
    'head': {'aspp': 1.0, 'feature': 1 / 16},
}
WEIGHT = 1e-5


def norm(x: Tensor, module: nn.Module) -> Tensor:
    """A batch normalisation by its definition, of a module in training or in evaluation."""
    if module.training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, var = module.running_mean, module.running_var
    scaled = (x - mean[:, None, None]) / (var + module.eps).sqrt()[:, None, None]
    return scaled * module.weight[:, None, None] + module.bias[:, None, None]


def conv(x: Tensor, module: nn.Module) -> Tensor:
    assert module.bias is None
    return F.conv2d(
        x, module.weight, None, module.stride, module.padding, module.dilation, module.groups
    )


def layer(x: Tensor, module: nn.Module) -> Tensor:
    """A convolution of mmcv with its norm: what its ReLU is given."""
    return norm(conv(x, module.conv), module.bn)


def separable(x: Tensor, module: nn.Module) -> Tensor:
    return layer(layer(x, module.depthwise_conv).clamp(min=0), module.pointwise_conv)


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode='bilinear', align_corners=False)


def by_hand(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Returns the values before each ReLU that OFD reads."""
    found = {}
    x = images
    for i in (0, 3, 6):
        x = norm(conv(x, model.backbone.stem[i]), model.backbone.stem[i + 1]).clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1)
    shallow = x
    for stage in range(1, 5):
        for block in getattr(model.backbone, f'layer{stage}'):
            inner = norm(conv(x, block.conv1), block.bn1).clamp(min=0)
            short = x
            if block.downsample is not None:
                short = norm(conv(x, block.downsample[0]), block.downsample[1])
            total = norm(conv(inner, block.conv2), block.bn2) + short
            x = total.clamp(min=0)
        found[f'c{stage + 1}'] = total
        shallow = x if stage == 1 else shallow
    head = model.decode_head
    pooled = layer(x.mean((2, 3), keepdim=True), head.image_pool[1]).clamp(min=0)
    branches = [resized(pooled, x), layer(x, head.aspp_modules[0]).clamp(min=0)]
    branches += [separable(x, module).clamp(min=0) for module in list(head.aspp_modules)[1:]]
    found['aspp'] = layer(torch.cat(branches, 1), head.bottleneck)
    skip = layer(shallow, head.c1_bottleneck).clamp(min=0)
    x = torch.cat([resized(found['aspp'].clamp(min=0), skip), skip], 1)
    found['feature'] = separable(
        separable(x, head.sep_bottleneck[0]).clamp(min=0), head.sep_bottleneck[1]
    )
    return found


def feeding_norm(model: nn.Module, place: str) -> nn.Module:
    """Returns the normalisation that the paper takes a place's margins from."""
    if place == 'aspp':
        return model.decode_head.bottleneck.bn
    if place == 'feature':
        return model.decode_head.sep_bottleneck[1].pointwise_conv.bn
    return getattr(model.backbone, f'layer{int(place[1]) - 1}')[-1].bn2


def margin(gamma: float, beta: float) -> float:
    """The mean of a normal variable's negative values."""
    s = abs(gamma)
    density = math.exp(-0.5 * (beta / s) ** 2) / math.sqrt(2 * math.pi)
    tail = 0.5 * math.erfc(beta / s / math.sqrt(2))
    return beta - s * density / tail if tail > 1e-3 else -3 * s


def partial_distance(student: Tensor, teacher: Tensor, module: nn.Module) -> Tensor:
    """The paper's loss an image: channel by channel, with the positions that count picked out."""
    total = student.new_zeros(())
    pairs = zip(module.weight.tolist(), module.bias.tolist(), strict=True)
    for channel, (gamma, beta) in enumerate(pairs):
        target = teacher[:, channel].clamp(min=margin(gamma, beta))
        mine = student[:, channel]
        counts = (mine > target) | (target > 0)
        total = total + (mine[counts] - target[counts]).square().sum()
    return total / len(student)


def uneven(network: nn.Module) -> nn.Module:
    """Gives a network norms that are as unlike as after a training."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
    return network


@pytest.mark.parametrize('at', list(FACTORS))
def test_loss_and_gradient_are_those_of_a_network_that_overwrites_nothing(at: str) -> None:
    torch.manual_seed(3)
    teacher = uneven(build_network(deeplabv3plus(8, 24), 'mmseg', 'teacher')).eval()
    untouched = copy.deepcopy(teacher)
    model = DistillSegmentor(deeplabv3plus(), dict(model=teacher), preset='ofd', at=at)
    uneven(model.student)
    model.set_clock(iteration=100, epoch=1)  # after the epoch that the connectors have alone
    model.train()
    ready = prepared(model, batch())
    images = ready['inputs']
    terms = model(images, ready['data_samples'], mode='loss')
    found = {k: v for k, v in terms.items() if k.startswith('distill.')}
    parameters = dict(model.student.named_parameters())

    mine = by_hand(model.student, images)
    with torch.no_grad():
        theirs = by_hand(untouched, images)
    wanted = {}
    for key, distiller in model.distillers.items():
        place = distiller.head.name.removeprefix('ofd_')
        layers = distiller.head.stu_connector.layers
        transformed = norm(conv(mine[place], layers.conv), layers.norm)
        distance = partial_distance(transformed, theirs[place], feeding_norm(untouched, place))
        wanted[f'distill.loss_{key}'] = WEIGHT * FACTORS[at][place] * distance
    assert found.keys() == wanted.keys() and len(wanted) == len(FACTORS[at])
    for name, value in wanted.items():
        assert value > 0
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=0)
    both = [
        torch.autograd.grad(sum(total.values()), list(parameters.values()), allow_unused=True)
        for total in (found, wanted)
    ]
    # A bias before another norm has no gradient but rounding's: the network's own scale is the
    # measure of that.
    scale = max(float(g.abs().max()) for g in both[1] if g is not None)
    reached = 0
    for name, one, other in zip(parameters, *both, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            reached += 1
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * scale, msg=name)
    assert reached > 50
