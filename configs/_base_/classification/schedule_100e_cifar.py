"""100 epochs on CIFAR: SGD, a fifth of the rate after 30, 60 and 80, batches of 128."""

_base_ = ['./runtime.py']

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
)
max_epochs = 100
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60, 80], gamma=0.2)]
auto_scale_lr = dict(enable=False, base_batch_size=128)
