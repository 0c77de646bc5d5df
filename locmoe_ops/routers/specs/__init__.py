"""The package's routers: a file a router, named as it is, with its keys and its `ROUTER`. None imports MindSpore."""
