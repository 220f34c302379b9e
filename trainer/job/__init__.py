"""A job: what to train on what, and the file forms it is read from."""

from trainer.job.job import Job

__all__ = ["Job"]
