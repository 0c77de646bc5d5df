"""One of several processes that want the same folder; a module that spawned processes can import."""

import json
import random
import time

from locmoe_ops.errors import InputError
from pangu_sigma.runtime.locks import FolderLock


def contend(folder, seed, results):
    """Takes and leaves the lock at random moments; where it has it, it must be the only one in the folder."""
    chance = random.Random(seed)
    entered = 0
    for _ in range(40):
        time.sleep(chance.random() * 0.004)
        try:
            with FolderLock(folder, "x"):
                with open(folder / "inside", "x") as file:
                    file.write(json.dumps(seed))
                time.sleep(chance.random() * 0.002)
                (folder / "inside").unlink()
                entered += 1
        except InputError:
            continue
    results.put(entered)
