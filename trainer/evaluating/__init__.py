"""Evaluates packaged models, or predictions made elsewhere, on any data.

Average precision needs everything a model can detect. Models are therefore run with a low score threshold
(`LOWEST_SCORE`) instead of the one they are served with; the metrics at that threshold are reported, too.
"""
