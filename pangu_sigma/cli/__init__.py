"""The commands: `main` finds the one that was asked for; one file a command holds its arguments and its few lines of
orchestration.
"""
