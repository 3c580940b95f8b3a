"""Every notebook opens with a Colab badge and a cell that installs gzpaper there, and its pictures are small.

`make colab` sees to it, test_notebooks.py holds it.
"""

import json
from configparser import ConfigParser
from pathlib import Path

from gzpaper.paper import root
from gzpaper.press import lean_picture

IDS = ("colab-badge", "colab-install")  # of the two cells
OPENINGS = ("[![Open in Colab]", 'if "google.colab" in')  # how they start: their ids change in some editors
INSTALL = """\
if "google.colab" in str(get_ipython()):  # nothing is done elsewhere; Colab keeps its own torch
    get_ipython().system("git clone -q --depth 1 {url} /content/{repo}")
    get_ipython().system("pip install -q '/content/{repo}[paper]'")
    get_ipython().run_line_magic("cd", "-q /content/{repo}")"""


def notebooks() -> list[Path]:
    "Those of the library and those of the paper."
    return sorted([*root().glob("nbs/[0-9]*.ipynb"), *root().glob("nbs/paper/*.ipynb")])


def opening(
    path: Path,  # of a notebook
) -> list[dict]:  # the two cells
    "What comes after a notebook's title. Owner and repository are those of settings.ini."
    config = ConfigParser()
    config.read(root() / "settings.ini")
    settings = config["DEFAULT"]
    colab, place = "https://colab.research.google.com", path.relative_to(root()).as_posix()
    link = f"{colab}/github/{settings['user']}/{settings['repo']}/blob/{settings['branch']}/{place}"
    badge = {"cell_type": "markdown", "source": [f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({link})"]}
    code = INSTALL.format(url=settings["git_url"], repo=settings["repo"]).splitlines(keepends=True)
    install = {"cell_type": "code", "source": code, "execution_count": None, "outputs": []}
    return [{**cell, "id": name, "metadata": {}} for cell, name in zip((badge, install), IDS)]


def opened(
    path: Path,  # of a notebook
) -> str:
    "A notebook's text with the two cells after its title, in place of those that are there, and with small pictures."
    notebook = json.loads(path.read_text())
    title, *rest = [cell for cell in notebook["cells"] if not "".join(cell["source"]).startswith(OPENINGS)]
    notebook["cells"] = [title, *opening(path), *rest]
    for output in (o for cell in notebook["cells"] for o in cell.get("outputs", []) if "data" in o):
        output["data"] = lean_picture(output["data"])
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in notebooks():
        path.write_text(opened(path))
