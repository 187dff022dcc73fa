"""FT: factor transfer, of what an autoencoder keeps of the teacher's map.

Paper: Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer.
    NeurIPS 2018. https://arxiv.org/abs/1802.04977
Reads: the output of a backbone's last stage (`backbone.cN`), through a translator.
Stages: two; the autoencoder, of the teacher's map alone, is trained first.
Tasks: classification.

The first stage needs no student. In a config with stages it is a distiller of the teacher alone,

    dict(student_module='backbone.c4',
         head=dict(type='DistillationHead', name='ft_c4', loss='FitNetLoss',
                   tea_connector='AutoencoderConnector'))

with train=['distillers'], and what it learns is handed over to the head of the second stage by
hand_over=['distillers.*.encoder.*', 'distillers.*.trained'], both heads being of one name. In a
loop of your own, train a `Paraphraser` by `paraphraser_loss` (5 to 30 epochs in the authors' code
and its ports), then

    torch.save(paraphraser.state_dict(), 'paraphraser.pth')

and name the file in the head: tea_connector=dict(type='ParaphraserConnector', checkpoint=…).
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.core.batch import Batch
from densekd.core.checkpoint import load_weights, read_checkpoint
from densekd.core.head import Connector, DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import l2n, zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError
from densekd.methods.connectors import ChannelConnector
from densekd.registry import CONNECTORS, HEADS, LOSSES

SLOPE = 0.1  # of the LeakyReLU, as the authors have it


def ft_loss(
    student: Tensor,  # (N, C, H, W), the translator's factor
    teacher: Tensor,  # (N, C, H, W), the paraphraser's
    p: int = 1,
) -> Tensor:
    """Mean difference of two factors, each of unit length in each image.

        f_n = F_n / ||F_n||_2   over C, H, W
        L = mean_{n,c,h,w} |f^s - f^t|^p

    So it is blind to the scale of either factor. A value of a unit vector of C*H*W numbers is about
    1/sqrt(C*H*W), and so is the loss for p = 1: another tap needs another weight.

    Deviations: none from the authors' code, whose p is 1. A port that first collapses the channels,
    as in attention transfer, is another method. A factor of zeros stays one, without a gradient.

    Args:
        student: The student's factor.
        teacher: The teacher's.
        p: 1 or 2.

    Raises:
        ConfigError: If p is neither.
        ShapeError: If the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
        >>> ft_loss(student, teacher)  # (|0.6 - 1| + |0.8|) / 2
        tensor(0.6000)
    """
    _check_p(p)
    check_same_shape(student, teacher, 'ft_loss')
    if not student.numel():
        return zero_like_loss(student)
    apart = l2n(student.flatten(1)) - l2n(teacher.detach().flatten(1))
    return apart.abs().mean() if p == 1 else apart.square().mean()


def paraphraser_loss(
    rebuilt: Tensor,  # (N, C, H, W)
    teacher: Tensor,  # (N, C, H, W)
) -> Tensor:
    """What a paraphraser is trained by: the squared error of the map that it rebuilds.

        L = mean_{n,c,h,w} (dec(enc(T)) - T)^2

    Deviations: this is the paper's; the authors' code has absolute values in its place.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> paraphraser_loss(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), 3.0))
        tensor(9.)
    """
    check_same_shape(rebuilt, teacher, 'paraphraser_loss')
    if not rebuilt.numel():
        return zero_like_loss(rebuilt)
    return F.mse_loss(rebuilt, teacher.detach())


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map: three 3x3 convolutions down to a factor, three back.

    Args:
        channels: Channels C of the teacher's map.
        rate: The factor has rate * C channels, and the map's height and width.

    Raises:
        ConfigError: If the rate is not positive.

    Example:
        >>> paraphraser = Paraphraser(8)
        >>> x = torch.randn(2, 8, 4, 4)
        >>> tuple(paraphraser.encoder(x).shape), tuple(paraphraser(x).shape)
        ((2, 4, 4, 4), (2, 8, 4, 4))
        >>> paraphraser_loss(paraphraser(x), x).backward()
    """

    def __init__(self, channels: int, rate: float = 0.5) -> None:
        super().__init__()
        factor = _factor_channels(channels, rate)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, factor, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(factor, factor, 3, padding=1),
            nn.LeakyReLU(SLOPE),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(factor, factor, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(factor, channels, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(SLOPE),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map (N, C, H, W), rebuilt from its factor."""
        return self.decoder(self.encoder(x))


@LOSSES.register
class FTLoss(DistillLoss):
    """`ft_loss` as a module, of two factors.

    Args:
        loss_weight: Factor; the authors' is 500, ports have 200 to 1000.
        p: 1 or 2.

    Raises:
        ConfigError: If p is neither.

    Example:
        >>> FTLoss(loss_weight=10.0)(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[2.0, 0.0]]]]))
        tensor(6.)
    """

    align = 'pool_larger'

    def __init__(self, loss_weight: float = 1.0, p: int = 1) -> None:
        super().__init__(loss_weight)
        _check_p(p)
        self.p = p

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return ft_loss(student, teacher, self.p)


@CONNECTORS.register
class TranslatorConnector(ChannelConnector):
    """FT's translator: three 3x3 convolutions, each with a normalisation and a LeakyReLU.

    A map finer than the teacher's is averaged down first, by the ratio of their strides.

    Args:
        in_channel: Channels of the student's tap; None takes them from it.
        out_channel: Channels C of the teacher's tap; None takes them from it.
        rate: The factor has rate * C channels; the paraphraser's must be the same.

    Example:
        >>> translator = TranslatorConnector(in_channel=4, out_channel=8)
        >>> tuple(translator(torch.zeros(2, 4, 5, 3)).shape)
        (2, 4, 5, 3)
    """

    def __init__(
        self, in_channel: int | None = None, out_channel: int | None = None, rate: float = 0.5
    ) -> None:
        super().__init__(in_channel, out_channel)
        self.rate = rate
        self.finer = 1, 1
        self.build_early()

    def bind(self, own: Place, other: Place) -> None:
        """Builds the layers."""
        super().bind(own, other)
        self.finer = _finer(own, other)

    def build(self, in_channel: int, out_channel: int) -> nn.Module:
        """Returns the layers."""
        factor = _factor_channels(out_channel, self.rate)
        layers: list[nn.Module] = []
        for a, b in ((in_channel, in_channel), (in_channel, factor), (factor, factor)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)]
            layers.append(nn.LeakyReLU(SLOPE))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the student's factor."""
        return super().forward(_averaged(x, self.finer))


@CONNECTORS.register
class ParaphraserConnector(Connector):
    """The frozen encoder of a paraphraser that was trained before, on the teacher's side.

    Args:
        checkpoint: Weights of the `Paraphraser`: a path or a URL.
        rate: The factor has this share of the teacher's channels.
        untrained: Whether an encoder of random weights is meant, as for a test.

    Without weights, given here or loaded with a run's checkpoint, it refuses to be used: a student
    would be trained by random features. It reads a map as large as it was trained on; the factor of
    one finer than the student's is averaged down by the loss.

    Raises:
        CheckpointError: If the weights are not those of a paraphraser for these channels.
        ConfigError: If there are none when they are needed.
    """

    trained: Tensor

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        rate: float = 0.5,
        untrained: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.rate = rate
        self.untrained = untrained
        self.encoder: nn.Module | None = None
        self.register_buffer('trained', torch.tensor(False))

    def bind(self, own: Place, other: Place) -> None:
        """Builds the encoder, and loads it."""
        paraphraser = Paraphraser(own.channels, self.rate)
        if self.checkpoint is not None:
            weights = read_checkpoint(self.checkpoint)
            load_weights(paraphraser, weights, self.checkpoint, 'paraphraser')
            self.trained.fill_(True)
        self.encoder = paraphraser.encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ParaphraserConnector:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Returns the teacher's factor."""
        if self.encoder is None:
            raise ConfigError(
                "ParaphraserConnector: it has the teacher's channels, which are not known yet. "
                'Bind it to two places, as a head does.'
            )
        if not (self.untrained or self.trained):
            raise ConfigError(
                'ParaphraserConnector: no weights are given, and an untrained paraphraser has '
                'nothing to say. Give checkpoint=…, the state_dict of a Paraphraser trained by '
                'paraphraser_loss, or untrained=True if that is meant.'
            )
        return self.encoder(x)


@CONNECTORS.register
class AutoencoderConnector(Connector):
    """The whole paraphraser, on the teacher's side: a head compares what it rebuilds.

    With `FitNetLoss` that is `paraphraser_loss`, and the student is not read. Its encoder has the
    names of a `ParaphraserConnector`'s, which takes it over.

    Args:
        rate: The factor has this share of the teacher's channels.

    Example:
        >>> from densekd.methods import DistillationHead
        >>> head = DistillationHead(loss='FitNetLoss', tea_connector='AutoencoderConnector')
        >>> head(None, torch.randn(2, 6, 4, 4)).requires_grad
        True
    """

    rebuilds = True

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.rate = rate
        self.encoder: nn.Module | None = None
        self.decoder: nn.Module | None = None
        self.register_buffer('trained', torch.tensor(True))

    def bind(self, own: Place, other: Place) -> None:
        """Builds both halves."""
        paraphraser = Paraphraser(own.channels, self.rate)
        self.encoder, self.decoder = paraphraser.encoder, paraphraser.decoder

    def forward(self, x: Tensor) -> Tensor:
        """Returns the teacher's map, rebuilt from its factor."""
        if self.encoder is None or self.decoder is None:
            raise ConfigError(
                "AutoencoderConnector: it has the teacher's channels, which are not known yet. "
                'Bind it to two places, as a head does.'
            )
        return self.decoder(self.encoder(x))


def _factor_channels(channels: int, rate: float) -> int:
    if rate <= 0:
        raise ConfigError(f'FT: rate is a share of the channels, and {rate} is not positive.')
    return max(int(channels * rate), 1)


def _finer(own: Place, other: Place) -> tuple[int, int]:
    """Returns how many of a place's cells, down and across, make one of the other's; 1 at least."""
    a, b = own.strides[0], other.strides[0]
    return (1, 1) if a is None or b is None else (_ratio(a[0], b[0]), _ratio(a[1], b[1]))


def _ratio(fine: float, coarse: float) -> int:
    return max(round(coarse / fine), 1)


def _averaged(x: Tensor, finer: tuple[int, int]) -> Tensor:
    if finer == (1, 1) or not x.numel():
        return x
    h, w = (-(-size // ratio) for size, ratio in zip(x.shape[2:], finer, strict=True))
    return F.adaptive_avg_pool2d(x, (h, w))


def _check_p(p: int) -> None:
    if p not in (1, 2):
        raise ConfigError(f'FT: p is 1 or 2, not {p}.')


@HEADS.register
class FTDistillationHead(DistillationHead):
    """Factor transfer of one map. The paraphraser's weights have to be given.

    As in tea_connector=dict(type='ParaphraserConnector', checkpoint='paraphraser.pth').
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'FTLoss', 'loss_weight': 500.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {'type': 'TranslatorConnector'}
    default_tea_connector: ClassVar[dict[str, Any]] = {'type': 'ParaphraserConnector'}
