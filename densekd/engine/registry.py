"""densekd's nodes in mmengine's registries, so that a config may say `type='densekd.X'`."""

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='densekd', locations=['densekd.engine.models'])
RUNNING = ['densekd.engine.hooks', 'densekd.engine.peers', 'densekd.engine.scores']
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='densekd', locations=RUNNING)
DATA = ['densekd.engine.labelled']
DATASETS = Registry('dataset', parent=ROOT_DATASETS, scope='densekd', locations=DATA)
TRANSFORMS = Registry('transform', parent=ROOT_TRANSFORMS, scope='densekd', locations=DATA)
METRICS = Registry('metric', parent=ROOT_METRICS, scope='densekd', locations=DATA)
