"""Generators of docs and tables. They run from the repository and are not part of the wheel."""
