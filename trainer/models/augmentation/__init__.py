"""Augmentation that a user describes in a file, instead of the recipe's or before it."""
