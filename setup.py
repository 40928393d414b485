"""Package metadata; the build system and the tools' settings stand in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

# The package is not importable yet: torch may be missing.
FOUND = re.search(r'^VERSION = "(.+)"$', Path(__file__).with_name("maxl_l2l").joinpath("version.py").read_text(), re.M)
README = Path(__file__).with_name("README.md")

PROGRESS = ["tqdm>=4.60"]
KMEANS = ["scikit-learn>=1.2"]
# Until 2.5.3 a resumed run made its first data iterator twice, and so did not go on as the interrupted one.
LIGHTNING = ["lightning>=2.5.3"]
VISION = ["torchvision>=0.19"]
HIGHER = ["higher>=0.2.1"]
TORCHOPT = ["torchopt>=0.7"]
PLOTS = ["matplotlib>=3.6"]
# Until 3.7 a legend could not stand outside of all panels.
REPORT = ["matplotlib>=3.7", "scikit-learn>=1.2", "jinja2>=3"]
METRICS = ["scipy>=1.8"]
TENSORBOARD = ["tensorboard"]
DEMO = [*KMEANS, *PROGRESS, *REPORT]
TUTORIAL = [*DEMO, "ipykernel>=6"]
# ruff sets the signatures. latex2mathml makes formulas that need no script.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0", "latex2mathml>=3.77", "ruff>=0.6"]

setup(
    name="maxl_l2l",
    version=FOUND[1] if FOUND else None,
    description="Meta AuXiliary Learning (MAXL) for any PyTorch classifier, beside learn2learn and higher",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="The maxl_l2l authors",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["maxl_l2l", "maxl_l2l.*"]),
    package_data={"maxl_l2l": ["py.typed"]},
    # torch brings filelock itself. The lowest versions here are tested by make oldest.
    install_requires=["torch>=2.4", "numpy>=1.23.2", "filelock"],
    extras_require={
        # An extra, because the core needs nothing of it, it imports for seconds, it asks for gym and numpy < 2, and its
        # last release does not build with a plain pip on Python >= 3.11: the Makefile shows the commands that work.
        "learn2learn": ["learn2learn==0.2.0"],
        "higher": HIGHER,
        "vision": VISION,
        "progress": PROGRESS,
        "kmeans": KMEANS,
        "metrics": METRICS,
        "tensorboard": TENSORBOARD,
        "lightning": LIGHTNING,
        "report": REPORT,
        "demo": DEMO,
        "docs": DOCS,
        "tutorial": TUTORIAL,
        # All that the benchmarks and the tests need but learn2learn.
        "bench": [*PROGRESS, *VISION, *HIGHER, *LIGHTNING, *TORCHOPT, *PLOTS],
        "test": [
            *TUTORIAL,
            *DOCS,
            *VISION,
            *HIGHER,
            *LIGHTNING,
            *TORCHOPT,
            *METRICS,
            *TENSORBOARD,
            "jupytext>=1.16",
            "nbclient>=0.10",
            "nbformat>=5.9",
            "safetensors>=0.4",
            "timm>=1.0",
            "transformers>=5",
            "pytest>=8",
            "pytest-cov>=5",
            "hypothesis>=6.100",
            "pytest-xdist>=3.8",
            "mypy>=1.11",
            "types-setuptools",
            "ruff>=0.6",
            "import-linter>=2.6",
            "build>=1",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
