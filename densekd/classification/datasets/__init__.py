"""Data sets of labelled images: CIFAR in its original files, and folders of images."""

from densekd.classification.datasets.base import LabelledImages
from densekd.classification.datasets.cifar import CIFAR10, CIFAR100
from densekd.classification.datasets.image_folder import ImageFolder

__all__ = ['CIFAR10', 'CIFAR100', 'ImageFolder', 'LabelledImages']
