"""Jobs, and the networks that the program would build for them."""

from helpers.jobs import build, make_config, make_job

__all__ = ["build", "make_config", "make_job"]
