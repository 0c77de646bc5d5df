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


# Of the Citation File Format 1.2.0 (its schema.json): which keys there are, of those that a file like this may need.
ROOT_KEYS = {
    "abstract",
    "authors",
    "cff-version",
    "commit",
    "contact",
    "date-released",
    "doi",
    "identifiers",
    "keywords",
    "license",
    "message",
    "preferred-citation",
    "references",
    "repository-code",
    "title",
    "type",
    "url",
    "version",
}
REFERENCE_KEYS = {
    "authors",
    "collection-title",
    "conference",
    "doi",
    "end",
    "identifiers",
    "journal",
    "publisher",
    "start",
    "title",
    "type",
    "url",
    "year",
}
PERSON_KEYS = {"affiliation", "alias", "email", "family-names", "given-names", "name-particle", "name-suffix", "orcid"}
DOI = re.compile(r"10\.\d{4,9}(\.\d+)?/[A-Za-z0-9:/_;\-.()\[\]\\]+")


def test_the_citation_is_valid():
    """By the rules of the format's schema, which knows no further keys, and has text for everything but years and
    pages.
    """
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"authors", "cff-version", "message", "title"} <= set(citation) <= ROOT_KEYS
    assert citation["type"] in ("software", "dataset") and len(set(citation["keywords"])) == len(citation["keywords"])
    texts = [citation[name] for name in ("cff-version", "message", "title", "version", "license")]
    for reference in citation["references"]:
        assert {"authors", "title", "type"} <= set(reference) <= REFERENCE_KEYS
        assert reference["type"] in ("article", "conference-paper") and isinstance(reference["year"], int)
        assert re.fullmatch(r"https://\S+", reference["url"])
        assert "doi" not in reference or DOI.fullmatch(reference["doi"])
        assert reference.get("start", 0) <= reference.get("end", 0)
        for identifier in reference["identifiers"]:
            assert set(identifier) <= {"type", "value", "description"} and identifier["type"] in ("doi", "url", "other")
        texts += [reference["title"], *(one["value"] for one in reference["identifiers"])]
    for author in [one for entry in (citation, *citation["references"]) for one in entry["authors"]]:
        assert set(author) == {"name"} or {"family-names"} <= set(author) <= PERSON_KEYS
        texts += author.values()
    assert all(isinstance(text, str) and text for text in texts)


def test_the_citation_is_packed():
    """test_wheel.py looks into the distribution itself."""
    (line,) = [line for line in read("MANIFEST.in").splitlines() if "CITATION" in line]
    assert line.startswith("include ") and "CITATION.cff" in line.split()


def test_the_readmes_say_where_the_sample_texts_are_from():
    for name in ("README.md", "README.zh.md"):
        rows = dict(re.findall(r"(?ms)^- `(en|zh|code)`(.*?)(?=^- |\Z)", read(name)))
        assert set(rows) == {*PACKAGES, "code"}
        for domain, package in PACKAGES.items():
            assert f"`{package.name}` {package.version}" in rows[domain] and "MIT" in rows[domain]
