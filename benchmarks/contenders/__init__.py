"""One training by each contender: `python -m benchmarks.contenders.NAME OPTIONS-AS-JSON`.

The last line printed is JSON: `images_per_second` of each epoch but the first, where loaders start and
kernels are chosen (median), `epoch_seconds` likewise, `first_step_seconds` since the process began, and with
the option `score` the `metric` of the best epoch on the validation data, measured by trainer.metrics for all.
"""
