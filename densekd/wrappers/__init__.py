"""The only place that knows mmdet and mmseg: models that train a student beside its teacher."""
