"""Which code makes a run: results of different code may differ, whatever their configurations say."""

import hashlib
from pathlib import Path

import locmoe_ops

PACKAGES = (Path(locmoe_ops.__file__).parent, Path(__file__).parents[1])


def code_version() -> str:
    """12 hexadecimal digits that change with any Python file of `locmoe_ops` and `pangu_sigma`, committed or not, and
    with nothing else.
    """
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package.parent).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]
