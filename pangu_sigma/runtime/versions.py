"""Which code makes a run, and what it needs besides Python: versions, and what to say where a package is missing."""

import hashlib
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Optional

import locmoe_ops

# What setup.py requires, by the name under which it is imported.
REQUIREMENTS = {
    "mindspore": "mindspore>=2.7,<2.11",
    "numpy": "numpy<2",
    "yaml": "pyyaml>=5.4",
    "sentencepiece": "sentencepiece>=0.1.97",
    "tqdm": "tqdm>=4.60",
    "safetensors": "safetensors>=0.4",
    "scipy": "scipy>=1.9",
    "psutil": "psutil>=5.9",
}
# The names of these on the package index, and of what extras add, for a run's record.
DISTRIBUTIONS = (
    *(re.split("[<>=]", requirement, maxsplit=1)[0] for requirement in REQUIREMENTS.values()),
    "matplotlib",
    "pyarrow",
    "scikit-learn",
    "tensorboardX",
    "tokenizers",
    "wandb",
    "swanlab",
)

PACKAGES = (Path(locmoe_ops.__file__).parent, Path(__file__).parents[1])


def code_version() -> str:
    """12 hexadecimal digits that change with any Python file of `locmoe_ops` and `pangu_sigma`, committed or not, and
    with nothing else: results of different code may differ, whatever their configurations say.
    """
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package.parent).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def program_version() -> str:
    """The version of this program. It is read where it stands, as setup.py does: the package's own file is above this
    one, and names what is above it.
    """
    text = (PACKAGES[1] / "__init__.py").read_text(encoding="utf-8")
    return str(re.findall(r'^__version__ = "(.*)"$', text, re.MULTILINE)[0])


def installed_version(package: str) -> Optional[str]:
    """The version of an installed package, which is not imported; None if there is none. `package` is its name on the
    package index.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def version_line(program: str) -> str:
    """One line of versions, as a report of a fault needs them. `program` is the version of this program."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"pangu-sigma {program} (MindSpore {installed_version('mindspore') or 'not installed'}, Python {python})"


def missing_package(error: BaseException) -> Optional[str]:
    """What to say of an import that failed since a whole package is missing; None for every other error."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or "." in error.name:
        return None
    needed = REQUIREMENTS.get(error.name)
    remedy = f"as pip install '{needed}' does" if needed else "and pip check says what needs it, and by which name"
    return f"the Python package {error.name} is not installed for {sys.executable}; expected it, {remedy}"
