"""Jobs, and the forms of the files that they are read from."""

from trainer.job.job import Job

__all__ = ["Job"]
