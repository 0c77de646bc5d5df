"""A small prepared data folder: three domains, documents of random words, rows of 32 + 1 ids."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, List

import pytest

from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.prepare import prepare

WORDS = {
    "en": "the of and to in is that it was for on are with as his they be at one have".split(),
    "zh": list("天下大势分久必合周末七国争并入于秦及灭之后楚汉又自高祖斩白蛇而起义"),
    "code": ["def f(x):\n", "    return x\n", "import os\n", "for i in range(9):\n", "    print(i)\n", "\n"],
}


def write_corpora(folder: Path, documents: int = 40, words: int = 80) -> Dict[str, str]:
    source: Dict[str, str] = {}
    generator = random.Random(5)
    for domain, vocabulary in WORDS.items():
        (folder / domain).mkdir(parents=True)
        source[domain] = str(folder / domain)
        space = " " if domain == "en" else ""
        for number in range(documents):
            text = space.join(generator.choice(vocabulary) for _ in range(words))
            (folder / domain / f"{number:03d}.txt").write_bytes(f"{number}. {text}\n".encode())
    return source


@pytest.fixture
def make_config() -> Callable[..., Config]:
    def make(path: Path, sources: Dict[str, str], sequence_length: int = 32, **settings: object) -> Config:
        config = Config()
        chosen = {"vocab_size": 400, "validation_fraction": 0.2, "sources": sources, **settings}
        data = replace(config.data, path=str(path), prepare=replace(config.data.prepare, **chosen))
        return replace(config, model=replace(config.model, sequence_length=sequence_length), data=data)

    return make


@pytest.fixture
def corpora(tmp_path: Path) -> Dict[str, str]:
    return write_corpora(tmp_path / "corpora")


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    config = Config()
    settings = replace(
        config.data.prepare, vocab_size=400, validation_fraction=0.2, sources=write_corpora(folder / "corpora")
    )
    data = replace(config.data, path=str(folder / "data"), prepare=settings)
    prepare(replace(config, model=replace(config.model, sequence_length=32), data=data))
    return folder / "data"


@pytest.fixture(scope="session")
def data(prepared_folder: Path) -> PreparedData:
    return PreparedData.open(str(prepared_folder), verify=True)


@pytest.fixture
def folder_bytes() -> Callable[[Path], List[object]]:
    """Names and contents of all files below a folder."""

    def read(folder: Path) -> List[object]:
        return [(str(p.relative_to(folder)), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]

    return read
