"""densekd's nodes in mmengine's registries, so that a config may say `type='densekd.X'`."""

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='densekd', locations=['densekd.engine.models'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='densekd', locations=['densekd.engine.hooks'])
