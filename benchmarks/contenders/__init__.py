"""One training script for each contender: `python -m benchmarks.contenders.NAME OPTIONS-AS-JSON`.

The last line printed is JSON: the medians `images_per_second` and `epoch_seconds` over all epochs but the
first, in which loaders start and kernels are chosen; `first_step_seconds` since the process started; and,
with the option `score`, the best epoch's `metric` on the validation data, computed by trainer.metrics for
all contenders.
"""
