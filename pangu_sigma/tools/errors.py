"""Failures of tools that their user can act on, where the input is not what is wrong."""


class ToolFailed(Exception):
    """One line that says what failed and why."""
