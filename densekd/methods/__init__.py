"""The methods, one paper one file, each a pure function under a thin module.

Shape letters, the same in the whole project:

    N      images of a batch
    C      channels
    H, W   height and width of a map
    K      classes, without background
    L      pyramid levels
    A      anchors of a cell
    R      rows: regions or anchors over all images
    G      true boxes of one image

The functions take the student first and the teacher second, have no weight, keep float32 and
float64, and send no gradient to the teacher. Importing this package fills the name tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densekd.core.head import DistillationHead
from densekd.errors import ConfigError
from densekd.methods.connectors import (
    BNConnector,
    ChannelConnector,
    ConvConnector,
    IdentityConnector,
    LinearConnector,
    TeacherModule,
)
from densekd.methods.feature.ab import ABDistillationHead, ABLoss, ab_loss
from densekd.methods.feature.at import ATDistillationHead, ATLoss, at_loss, attention_map
from densekd.methods.feature.cwd import CWDDistillationHead, CWDLoss, cwd_loss
from densekd.methods.feature.feed import (
    FEEDDistillationHead,
    FEEDLoss,
    TranslatorsConnector,
    feed_loss,
)
from densekd.methods.feature.fgfi import (
    FGFIDistillationHead,
    FGFILoss,
    imitation_loss,
    imitation_mask,
)
from densekd.methods.feature.fitnet import FitNetDistillationHead, FitNetLoss, hint_loss
from densekd.methods.feature.fsp import FSPDistillationHead, FSPLoss, fsp_loss, fsp_matrix
from densekd.methods.feature.ft import (
    AutoencoderConnector,
    FTDistillationHead,
    FTLoss,
    Paraphraser,
    ParaphraserConnector,
    TranslatorConnector,
    ft_loss,
    paraphraser_loss,
)
from densekd.methods.feature.kdsvd import KDSVDDistillationHead, KDSVDLoss, kdsvd_loss
from densekd.methods.feature.lsl import (
    LayerSelector,
    LSLDistillationHead,
    LSLLoss,
    ProjectionConnector,
    class_likeness,
    layer_likeness,
    lsl_loss,
)
from densekd.methods.feature.mgd import MGDDistillationHead, MGDLoss, mgd_loss
from densekd.methods.feature.nst import NSTDistillationHead, NSTLoss, nst_loss
from densekd.methods.feature.ofd import OFDDistillationHead, OFDLoss, margin_from_bn, ofd_loss
from densekd.methods.feature.pkd import PKDDistillationHead, PKDLoss, pkd_loss
from densekd.methods.feature.vid import VIDConnector, VIDDistillationHead, VIDLoss, vid_loss
from densekd.methods.gradient.gradient_attention import (
    GradientAttentionDistillationHead,
    GradientAttentionLoss,
    gradient_attention_loss,
)
from densekd.methods.gradient.jacobian import JacobianDistillationHead, JacobianLoss, jacobian_loss
from densekd.methods.relation.cc import CCDistillationHead, CCLoss, cc_loss
from densekd.methods.relation.fe import FEDistillationHead, FELoss, lp_loss
from densekd.methods.relation.ifvd import IFVDDistillationHead, IFVDLoss, ifvd_loss
from densekd.methods.relation.mhgd import (
    GraphAttention,
    GraphEstimator,
    MHGDDistillationHead,
    MHGDEstimatorDistillationHead,
    MHGDEstimatorLoss,
    MHGDLoss,
    mhgd_estimator_loss,
    mhgd_loss,
)
from densekd.methods.relation.pkt import PKTDistillationHead, PKTLoss, pkt_loss
from densekd.methods.relation.rkd import (
    RKDDistillationHead,
    RKDLoss,
    rkd_angle_loss,
    rkd_distance_loss,
)
from densekd.methods.relation.skd import (
    SKDPairwiseDistillationHead,
    SKDPairwiseLoss,
    SKDPixelwiseDistillationHead,
    SKDPixelwiseLoss,
    skd_pairwise_loss,
    skd_pixelwise_loss,
)
from densekd.methods.relation.sp import SPDistillationHead, SPLoss, sp_loss
from densekd.methods.response.binary_kl import (
    BinaryKLDistillationHead,
    BinaryKLLoss,
    binary_kl_loss,
)
from densekd.methods.response.chen2017 import (
    BoundedRegressionDistillationHead,
    BoundedRegressionLoss,
    WeightedSoftLabelDistillationHead,
    WeightedSoftLabelLoss,
    WeightedSoftObjectnessDistillationHead,
    WeightedSoftObjectnessLoss,
    bounded_regression_loss,
    weighted_soft_label_loss,
    weighted_soft_objectness_loss,
)
from densekd.methods.response.dist import DISTDistillationHead, DISTLoss, dist_loss
from densekd.methods.response.dkd import DKDDistillationHead, DKDLoss, dkd_loss
from densekd.methods.response.dml import DMLDistillationHead, DMLLoss, dml_loss
from densekd.methods.response.kd import (
    KDDistillationHead,
    KDLoss,
    ensemble_kd_loss,
    kd_loss,
)
from densekd.methods.response.kd_qfl import KDQFLDistillationHead, KDQFLLoss, kd_qfl_loss
from densekd.registry import HEADS, LOSSES

__all__ = [
    'ABDistillationHead',
    'ABLoss',
    'ATDistillationHead',
    'ATLoss',
    'AutoencoderConnector',
    'BNConnector',
    'BinaryKLDistillationHead',
    'BinaryKLLoss',
    'BoundedRegressionDistillationHead',
    'BoundedRegressionLoss',
    'CCDistillationHead',
    'CCLoss',
    'CWDDistillationHead',
    'CWDLoss',
    'ChannelConnector',
    'ConvConnector',
    'DISTDistillationHead',
    'DISTLoss',
    'DKDDistillationHead',
    'DKDLoss',
    'DMLDistillationHead',
    'DMLLoss',
    'DistillationHead',
    'FEDistillationHead',
    'FEEDDistillationHead',
    'FEEDLoss',
    'FELoss',
    'FGFIDistillationHead',
    'FGFILoss',
    'FSPDistillationHead',
    'FSPLoss',
    'FTDistillationHead',
    'FTLoss',
    'FitNetDistillationHead',
    'FitNetLoss',
    'GradientAttentionDistillationHead',
    'GradientAttentionLoss',
    'GraphAttention',
    'GraphEstimator',
    'IFVDDistillationHead',
    'IFVDLoss',
    'IdentityConnector',
    'JacobianDistillationHead',
    'JacobianLoss',
    'KDDistillationHead',
    'KDLoss',
    'KDQFLDistillationHead',
    'KDQFLLoss',
    'KDSVDDistillationHead',
    'KDSVDLoss',
    'LSLDistillationHead',
    'LSLLoss',
    'LayerSelector',
    'LinearConnector',
    'MGDDistillationHead',
    'MGDLoss',
    'MHGDDistillationHead',
    'MHGDEstimatorDistillationHead',
    'MHGDEstimatorLoss',
    'MHGDLoss',
    'NSTDistillationHead',
    'NSTLoss',
    'OFDDistillationHead',
    'OFDLoss',
    'PKDDistillationHead',
    'PKDLoss',
    'PKTDistillationHead',
    'PKTLoss',
    'Paraphraser',
    'ParaphraserConnector',
    'ProjectionConnector',
    'RKDDistillationHead',
    'RKDLoss',
    'SKDPairwiseDistillationHead',
    'SKDPairwiseLoss',
    'SKDPixelwiseDistillationHead',
    'SKDPixelwiseLoss',
    'SPDistillationHead',
    'SPLoss',
    'TeacherModule',
    'TranslatorConnector',
    'TranslatorsConnector',
    'VIDConnector',
    'VIDDistillationHead',
    'VIDLoss',
    'WeightedSoftLabelDistillationHead',
    'WeightedSoftLabelLoss',
    'WeightedSoftObjectnessDistillationHead',
    'WeightedSoftObjectnessLoss',
    'ab_loss',
    'at_loss',
    'attention_map',
    'binary_kl_loss',
    'bounded_regression_loss',
    'build',
    'cc_loss',
    'class_likeness',
    'cwd_loss',
    'dist_loss',
    'dkd_loss',
    'dml_loss',
    'ensemble_kd_loss',
    'feed_loss',
    'fsp_loss',
    'fsp_matrix',
    'ft_loss',
    'gradient_attention_loss',
    'hint_loss',
    'ifvd_loss',
    'imitation_loss',
    'imitation_mask',
    'jacobian_loss',
    'kd_loss',
    'kd_qfl_loss',
    'kdsvd_loss',
    'layer_likeness',
    'lp_loss',
    'lsl_loss',
    'margin_from_bn',
    'mgd_loss',
    'mhgd_estimator_loss',
    'mhgd_loss',
    'nst_loss',
    'ofd_loss',
    'paraphraser_loss',
    'pkd_loss',
    'pkt_loss',
    'rkd_angle_loss',
    'rkd_distance_loss',
    'skd_pairwise_loss',
    'skd_pixelwise_loss',
    'sp_loss',
    'vid_loss',
    'weighted_soft_label_loss',
    'weighted_soft_objectness_loss',
]


def build(cfg: Any, where: str = 'head') -> DistillationHead:
    """Returns the head that a config describes; a head that is built already is returned as it is.

    Args:
        cfg: A dict with `type` and its arguments, or a bare name.
        where: The place in the config, for messages.

    Raises:
        ConfigError: If the config describes no head, or a bare loss.

    Example:
        >>> build(dict(type='PKDDistillationHead', name='pkd_p3')).loss.loss_weight
        6.0
        >>> build('PKDLoss', 'distillers[0].head')
        Traceback (most recent call last):
        densekd.errors.ConfigError: distillers[0].head: 'PKDLoss' is a loss, and a distiller needs \
a head around it. Write head=dict(type='DistillationHead', loss=dict(type='PKDLoss')).
    """
    name = cfg.get('type') if isinstance(cfg, Mapping) else cfg
    name = name.removeprefix('densekd.') if isinstance(name, str) else name
    if isinstance(name, str) and name in LOSSES and name not in HEADS:
        raise ConfigError(
            f'{where}: {name!r} is a loss, and a distiller needs a head around it. Write '
            f"head=dict(type='DistillationHead', loss=dict(type={name!r}))."
        )
    try:
        head = HEADS.build(cfg, where)
    except ConfigError as error:
        if str(error).startswith(where):
            raise
        raise ConfigError(f'{where}: {error}') from None  # one of the head's own parts
    if not isinstance(head, DistillationHead):
        raise ConfigError(f'{where}: a head is a dict with a type, not {cfg!r}.')
    return head
