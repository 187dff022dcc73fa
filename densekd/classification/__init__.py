"""The lightweight classifier path: networks, heads, data sets of labelled images, a metric.

`networks` and `heads` need torch alone. What a runner builds (`classifier`, `preprocessor`,
`datasets`, `metric`) needs mmengine, and is registered by `densekd.engine`.
"""
