"""The command line of each `pangu-sigma` command, one module a command or family; `pangu_sigma.cli` puts them together.

Nothing heavy is imported before a command runs: a module here imports what does the work inside its action.
"""
