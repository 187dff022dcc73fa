"""Packaging of densekd. The tested versions are in requirements/, not here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+)'", (HERE / 'densekd/__init__.py').read_text(), re.M)
README = HERE / 'README.md'

# Import names are the same in both families, so a program installs one of them. `det` and `seg`
# bring the maintained one. No versions: which mmcv fits depends on the torch that is there.
DET = ['onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'imaug', 'psutil']
SEG = ['onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'psutil']

setup(
    name='densekd',
    version=VERSION.group(1) if VERSION else '0',
    description='Knowledge distillation for dense prediction on the OpenMMLab stack',
    long_description=README.read_text() if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=['densekd', 'densekd.*']),
    install_requires=['torch'],
    extras_require={
        'det': DET,
        'seg': SEG,
        'onedl': sorted({*DET, *SEG}),
        'openmmlab': ['mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'ftfy'],
        'demo': ['matplotlib', 'rich', 'scikit-learn'],
        'dev': ['codespell', 'hypothesis', 'mypy', 'pytest', 'pytest-xdist', 'ruff'],
    },
    entry_points={'console_scripts': ['densekd = densekd.cli.main:main']},
    classifiers=[
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
)
