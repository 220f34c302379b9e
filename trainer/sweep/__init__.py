"""Sweeps: search spaces, sampling, early termination, and the processes that run trials."""
