"""Draws predictions onto images, for reports, `trainer predict --draw` and the service alike."""
