"""Packaging: everything is read from settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
readme = Path("README.md")


def needs(key: str) -> list[str]:
    return cfg[key].split()


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=f"https://github.com/{cfg['user']}/{cfg['repo']}",
    keywords=cfg["keywords"],
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Framework :: Jupyter",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["ftnb", "ftnb.*"]),
    package_data={"ftnb": ["*/static/*"]},  # the rating screen's JavaScript and style
    python_requires=f">={cfg['min_python']}",
    install_requires=needs("requirements"),
    extras_require={
        extra: needs(f"{extra}_requirements")
        for extra in ("dev", "lab", "examples", "quantized", "structured", "benchmarks")
    },
    entry_points={"nbdev": ["ftnb = ftnb._modidx:d"]},  # lets nbdev link names in prose to their documentation
    zip_safe=False,
)
