"""Explanations of answers: which parts of an image support a class or a detected object."""
