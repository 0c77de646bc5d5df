"""With this folder in PYTHONPATH msrun's own program starts ranks as ever, but does not import the rest of MindSpore
for it, as its package does: two processor seconds for each of the jobs that tests launch.
"""

import sys


def leave_out_mindspore():
    import importlib.machinery
    import os
    import types

    specification = importlib.machinery.PathFinder.find_spec("mindspore")
    if specification is None:
        return
    root = specification.submodule_search_locations[0]

    class NoController:
        """In the place of the cluster controller of MindX, which MindSpore asks for where its variables are set."""

        def check_enable(self):
            return False

    held = {
        "mindspore": {},
        "mindspore.parallel": {},
        "mindspore.runtime": {},
        "mindspore.context": {},
        "mindspore.communication": {"get_local_rank_size": None},
        "mindspore.utils": {"RSCPluginHandle": NoController},
    }
    for name, attributes in held.items():
        module = types.ModuleType(name)
        module.__path__ = [os.path.join(root, *name.split(".")[1:])]
        module.__dict__.update(attributes)
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)


if getattr(sys, "argv", [""])[0].endswith("/msrun"):
    leave_out_mindspore()
