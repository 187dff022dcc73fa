"""MGD: the teacher's feature, generated from a student's feature of which parts are masked.

Paper: Yang, Li, Shao, Shi, Yuan, Yuan: Masked Generative Distillation. ECCV 2022.
    https://arxiv.org/abs/2205.01529
Reads: the levels of a detector's neck (`neck.pN`); the last stage of a segmentor's or a
    classifier's backbone (`backbone.cN`).
Stages: one.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import numbers_of
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError, TapError, did_you_mean
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import HEADS, LOSSES, PRESETS

MASK_KINDS = ('position', 'channel')
# Weight, masked share and kind of mask by kind of model, as in the authors' configs.
SETTINGS = {
    'one-stage': (2e-5, 0.65, 'position'),
    'two-stage': (5e-7, 0.45, 'position'),
    'segmentor': (2e-5, 0.75, 'position'),
    'classifier': (7e-5, 0.15, 'channel'),
}


def mgd_loss(
    student: Tensor,  # (N, C, H, W), through a connector
    teacher: Tensor,  # (N, C, H, W)
    generator: Callable[[Tensor], Tensor],
    mask: Tensor,  # (N, 1, H, W) or (N, C, 1, 1), 1 keeps
) -> Tensor:
    """Squared distance to the teacher of what is generated from the masked student.

        L = 1/N sum_{n,c,h,w} (G(M * S) - T)^2

    It is not 0 between equal maps, and the sum grows with C*H*W: the published weights belong to
    256 channels and images of about 800x1333.

    Args:
        student: The student's map.
        teacher: The teacher's.
        generator: The module G.
        mask: What of the student is kept.

    Raises:
        ShapeError: If the maps differ, the mask does not fit, or G changes the shape.

    Example:
        >>> student = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)
        >>> mask = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
        >>> mgd_loss(student, torch.full_like(student, 3.0), nn.Identity(), mask)  # 4 + 9
        tensor(13.)
    """
    check_same_shape(student, teacher, 'mgd_loss')
    fits = mask.dim() == student.dim() and all(
        own in (1, size) for own, size in zip(mask.shape, student.shape, strict=True)
    )
    if not fits:
        raise ShapeError(
            f'mgd_loss: the mask is {tuple(mask.shape)} and the maps are {tuple(student.shape)}; '
            'it must be (N, 1, H, W) or (N, C, 1, 1).'
        )
    generated = generator(student * mask.detach().to(student))
    check_same_shape(generated, teacher, 'mgd_loss: G')
    # Also without an image: each weight of G then has a gradient, of zero.
    return F.mse_loss(generated, teacher.detach(), reduction='sum') / max(student.shape[0], 1)


@LOSSES.register
class MGDLoss(DistillLoss):
    """`mgd_loss` with a generation block of its own and a new mask in each step.

    The block is a 3x3 convolution, a ReLU and another 3x3 convolution, at the teacher's channels;
    it is trained beside the student and thrown away. With 2048 channels it has 75 million weights.

    Args:
        loss_weight: Factor on the sum an image; see the preset for the authors'.
        masked: Share of the student's feature that is set to 0, called lambda in the paper.
        mask_kind: `'position'` masks all channels of a position, `'channel'` a whole channel.

    Masks come from a generator of the loss's own, seeded by the batch, the tapped place and the
    process: other random numbers stay as they were, levels have unlike masks, and a run that is
    resumed draws what it would have drawn. They are drawn on the CPU, so that every device has the
    same ones. In eval mode nothing is masked.

    Raises:
        ConfigError: If an option is none of these.

    Example:
        >>> mask = MGDLoss(masked=0.65).mask(torch.zeros(2, 8, 40, 40), seed=0)
        >>> tuple(mask.shape), 0.3 < mask.float().mean().item() < 0.4
        ((2, 1, 40, 40), True)
    """

    needs = ('seed',)
    align = 'to_teacher'
    minimum_at_equality = False  # what is compared is generated, and from a part of the student

    def __init__(
        self, loss_weight: float = 1.0, masked: float = 0.65, mask_kind: str = 'position'
    ) -> None:
        super().__init__(loss_weight)
        if not 0 <= masked <= 1:
            raise ConfigError(f'MGDLoss: masked is a share, from 0 to 1, not {masked}.')
        if mask_kind not in MASK_KINDS:
            hint = did_you_mean(mask_kind, MASK_KINDS)
            raise ConfigError(f'MGDLoss: there is no mask_kind {mask_kind!r}. {hint}')
        self.masked = masked
        self.mask_kind = mask_kind
        self.offset = 0
        self.generator: nn.Module | None = None

    def bind(self, student: Place, teacher: Place) -> None:
        """Builds the generation block for the teacher's channels.

        Raises:
            TapError: If the tap gives several tensors.
        """
        label = student.tap.label
        if len(teacher.shapes) > 1:
            raise TapError(
                f'MGDLoss: tap {label!r} gives {len(teacher.shapes)} tensors, and a generation '
                'block belongs to one. Write one distiller for each place.'
            )
        channels = teacher.channels
        self.generator = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        # Not hash(): Python salts that anew in each process.
        self.offset = zlib.crc32(label.encode())

    def mask(self, student: Tensor, seed: int) -> Tensor:
        """Returns the mask of a step, bool, on the student's device.

        Args:
            student: The map (N, C, H, W) to be masked.
            seed: The batch's seed.
        """
        n, c, h, w = student.shape
        shape = (n, 1, h, w) if self.mask_kind == 'position' else (n, c, 1, 1)
        numbers = numbers_of(seed, self.offset)
        return (torch.rand(shape, generator=numbers) >= self.masked).to(student.device)

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss.

        Raises:
            ConfigError: If the loss was not bound to a place, or the batch has no seed.
        """
        if self.generator is None:
            raise ConfigError(
                'MGDLoss: its generation block has the channels of the place that the teacher is '
                'tapped at. Use it in a head, or call mgd_loss with a generator of your own.'
            )
        if not self.training:
            mask = student.new_ones(len(student), 1, *student.shape[2:])
        elif batch.has('seed'):
            mask = self.mask(student, batch.seed)
        else:
            raise ConfigError(
                'MGDLoss: its masks are drawn from the seed of the batch. Give the head '
                "Batch({'seed': step}), as a model around it does."
            )
        return mgd_loss(student, teacher, self.generator, mask)


@HEADS.register
class MGDDistillationHead(DistillationHead):
    """Masked generation of one map, with the weights of a one-stage detector.

    A 1x1 convolution brings the student's channels to the teacher's where they differ.
    """

    default_loss: ClassVar[dict[str, Any]] = {
        'type': 'MGDLoss',
        'loss_weight': 2e-5,
        'masked': 0.65,
    }
    default_stu_connector: ClassVar[dict[str, Any]] = {
        'type': 'ConvConnector',
        'only_if_needed': True,
    }


@PRESETS.register(name='mgd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns MGD on each level of a detector's neck, or on the last stage of a backbone.

    Weights and masked shares are the authors': 2e-5 and 0.65 for one-stage detectors, 5e-7 and
    0.45 for two-stage ones, 2e-5 and 0.75 for segmentors (who add CWD on the logits), 7e-5 and
    0.15 of whole channels for classifiers. Their best detectors also start with the teacher's neck
    and head, which is no part of this.
    """
    detector = anatomy.kind in ('one-stage', 'two-stage')
    at = choose_at('mgd', at, preset.at if detector else tuple(reversed(preset.at)))
    if at == 'neck':
        names = fitting_taps('mgd', anatomy, 'neck.p*')
    else:
        names = fitting_taps('mgd', anatomy, 'backbone.c?')[-1:]
    weight, masked, mask_kind = SETTINGS[anatomy.kind]
    distillers = []
    for name in names:
        loss = {
            'type': 'MGDLoss',
            'loss_weight': weight,
            'masked': masked,
            'mask_kind': mask_kind,
        }
        head = {'type': 'MGDDistillationHead', 'loss': loss, 'name': f'mgd_{short(name)}'}
        distillers.append({'student_module': name, 'teacher_module': name, 'head': head})
    return distillers


preset.at = ('neck', 'backbone')
