"""Data files to records, images and datasets, with checks on the way."""
