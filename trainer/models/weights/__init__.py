"""Weights to start from: finding them, reading them, and fitting them to a network."""
