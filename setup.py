"""Packaging: everything it says is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

settings = ConfigParser(delimiters=["="])
settings.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
imagenet = cfg["imagenet_requirements"].split()
paper = imagenet + cfg["paper_requirements"].split()
serve = cfg["serve_requirements"].split()

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"].upper(),
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    packages=find_packages(include=["gzpaper"]),
    package_data={"gzpaper": ["released/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={"imagenet": imagenet, "paper": paper, "serve": serve,
                    "dev": paper + serve + cfg["dev_requirements"].split(), "docs": cfg["docs_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
