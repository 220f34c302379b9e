"""Sweeps: which settings to try, in which order, and when to give a trial up."""
