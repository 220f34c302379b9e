"""Sampling algorithms: how a sweep chooses the settings of its next trial."""
