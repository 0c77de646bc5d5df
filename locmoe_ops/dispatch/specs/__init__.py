"""The package's dispatchers: a file a dispatcher, named as it is, with its slots, what it exchanges and its
`DISPATCHER`. None imports MindSpore.
"""
