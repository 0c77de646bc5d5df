"""Files that come with the program: example configurations, descriptions of hardware, launchers.

In a checkout they stand beside the packages, in `configs/` and `scripts/`. A wheel holds copies of them in
`pangu_sigma/shipped`, which setup.py puts there; it reads the list from here, so this file imports nothing of the
project.
"""

from pathlib import Path
from typing import Dict, Iterator, Tuple

FOLDER = "shipped"  # in the package, of a wheel
# Of each folder, what a wheel holds. The other scripts check the project itself and need its checkout.
SHIPPED = {
    "configs": ("**/*.yaml", "schema.json"),
    "scripts": (
        "cluster_network.sh",
        "environment.sh",
        "make_rank_table.py",
        "quickstart.sh",
        "simulate_cluster.sh",
        "train_msrun.sh",
        "train_rank_table.sh",
        "train_supervised.sh",
    ),
}


def resource(name: str) -> Path:
    """Where a file or folder is that comes with the program. `name` is its path in a checkout, as in
    `configs/hardware`.
    """
    package = Path(__file__).resolve().parents[1]
    within = package / FOLDER
    return (within if within.is_dir() else package.parent) / name


def files_in(root: Path) -> Iterator[Tuple[str, Path]]:
    """The files that a wheel holds: their names in a checkout, sorted, and where they are below `root`."""
    for folder, patterns in SHIPPED.items():
        for path in sorted(path for pattern in patterns for path in (root / folder).glob(pattern)):
            yield path.relative_to(root).as_posix(), path


def shipped_files() -> Dict[str, Path]:
    """The files that come with the program, by their names in a checkout."""
    return dict(files_in(resource("")))
