"""Weights to start from: where they are found, how they are read, and what fits a network."""
