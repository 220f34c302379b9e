"""Runs a sweep's trials in processes of their own, on one machine or several."""
