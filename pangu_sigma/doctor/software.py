"""Python, NumPy and MindSpore: are they there, do they fit, and does a product come out right."""

import sys
from typing import Callable, List, Optional, Tuple

from pangu_sigma.doctor.findings import Finding, failure, ok, warning
from pangu_sigma.doctor.machine import Machine, Ran
from pangu_sigma.runtime.versions import REQUIREMENTS, installed_version

PYTHONS = ((3, 9), (3, 13))  # from, up to and without
MINDSPORES = ((2, 7), (2, 11))
NUMPY_END = (2, 0)  # MindSpore's wheels are built against NumPy 1.x and fail with 2.x
IMPORT_S = 90.0

# In a process of its own: MindSpore keeps what it finds at its first import, and may end a process that does not suit
# it.
PROGRAM = """
import numpy, mindspore
mindspore.set_device("CPU")
product = mindspore.ops.matmul(mindspore.Tensor([[1.0, 2.0]]), mindspore.Tensor([[3.0], [4.0]]))
assert float(product.asnumpy()[0, 0]) == 11.0, product
"""


def check_software(
    machine: Machine,
    tried: Callable[[], Ran],
    versions: Callable[[str], Optional[str]] = installed_version,
    python: Tuple[int, ...] = tuple(sys.version_info[:3]),
) -> List[Finding]:
    """Findings on Python, NumPy and MindSpore.

    Args:
        machine: the one that they run on.
        tried: waits for what `try_mindspore` returns.
        versions: gives the installed version of a package, None where there is none.
        python: version of the interpreter.
    """
    shown, numpy, wanted = ".".join(map(str, python)), versions("numpy"), f"pip install '{REQUIREMENTS['numpy']}'"
    findings = [ok("Python", shown), ok("NumPy", str(numpy)), _check_mindspore(versions("mindspore"), tried)]
    if not PYTHONS[0] <= python[:2] < PYTHONS[1]:
        fix = "use Python 3.9 to 3.12 (MindSpore 2.10: 3.10 to 3.12)"
        findings[0] = failure("Python", f"{shown}, for which MindSpore has no wheels", fix)
    if numpy is None:
        findings[1] = failure("NumPy", "not installed", wanted)
    elif numbers(numpy) >= NUMPY_END:
        findings[1] = failure("NumPy", f"{numpy}, with which MindSpore's operators fail", wanted)
    return findings


def try_mindspore(machine: Machine) -> Ran:
    """Imports MindSpore and multiplies two matrices on the CPU of `machine`."""
    return machine.run([sys.executable, "-c", PROGRAM], IMPORT_S)


def _check_mindspore(found: Optional[str], tried: Callable[[], Ran]) -> Finding:
    wanted = f"pip install '{REQUIREMENTS['mindspore']}'"
    if found is None:
        return failure("MindSpore", "not installed", wanted)
    if not MINDSPORES[0] <= numbers(found)[:2] < MINDSPORES[1]:
        return failure("MindSpore", f"{found}, which this program was not made for", wanted)
    ran = tried()
    if ran.status is None:
        text = f"{found}: importing it gave {ran.errors}"
        return warning("MindSpore", text, "look at what else this machine is busy with")
    if ran.status != 0:
        reason = (ran.errors.strip().splitlines() or [f"status {ran.status}"])[-1]
        fix = f"python -c 'import mindspore' tells more; else {wanted} anew"
        return failure("MindSpore", f"{found} does not work: {reason}", fix)
    return ok("MindSpore", f"{found}; a product on CPU comes out right")


def numbers(text: str) -> Tuple[int, ...]:
    """The leading numbers of a version: 8.2.RC1 gives (8, 2), 25.3.rc1 gives (25, 3)."""
    found = []
    for word in text.split("."):
        if not word.isdigit():
            break
        found.append(int(word))
    return tuple(found)
