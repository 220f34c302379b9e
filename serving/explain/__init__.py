"""Explanations: which parts of an image speak for a class or for a detected object."""
