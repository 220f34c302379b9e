"""A single training run: from a job's data to checkpoints, a packaged model and a report."""
