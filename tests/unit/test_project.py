"""The files that say what the project is: licence, citation, metadata."""

import re
from pathlib import Path

import yaml

from pangu_sigma import __version__
from pangu_sigma.data.samples import PACKAGES

REPOSITORY = Path(__file__).resolve().parents[2]
PAPERS = ("2303.10845", "2401.13920")


def read(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_the_licence_is_apaches_whole():
    words = " ".join(read("LICENSE").split())
    assert words.startswith("Apache License Version 2.0, January 2004") and "END OF TERMS AND CONDITIONS" in words
    assert [number for number in range(1, 10) if f" {number}. " not in words] == []
    assert 'license="Apache-2.0"' in read("setup.py") and "License :: OSI Approved :: Apache Software License" in read(
        "setup.py"
    )


def test_the_citation_names_both_papers():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (
        citation["cff-version"] == "1.2.0"
        and citation["version"] == __version__
        and citation["license"] == "Apache-2.0"
    )
    assert [reference["url"].rpartition("/")[2] for reference in citation["references"]] == list(PAPERS)
    for entry in (citation, *citation["references"]):
        assert entry["title"] and entry["authors"] and entry["type"]
    assert all(paper in read("setup.py") for paper in PAPERS)


def test_the_readmes_say_where_the_sample_texts_are_from():
    for name in ("README.md", "README.zh.md"):
        rows = dict(re.findall(r"(?ms)^- `(en|zh|code)`(.*?)(?=^- |\Z)", read(name)))
        assert set(rows) == {*PACKAGES, "code"}
        for domain, package in PACKAGES.items():
            assert f"`{package.name}` {package.version}" in rows[domain] and "MIT" in rows[domain]
