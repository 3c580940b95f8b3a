"""The documentation site: Sphinx reads the notebooks, README.md and docs/ where they lie. `make docs` builds it."""

import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from reference import write_reference  # noqa: E402

config = ConfigParser()
config.read(HERE.parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

project, author, copyright = settings["title"], settings["author"], settings["copyright"]
extensions = ["myst_nb", "sphinx_copybutton"]
include_patterns = ["index.md", "docs/**", "nbs/[0-9]*.ipynb", "paper/notebooks/*.ipynb", "gzpaper/released/*.md",
                    "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "cluster/README.md", "data/README.md"]
exclude_patterns = [".git", ".venv", "_docs", "runs"]

nb_execution_mode = "off"  # the kept outputs are shown
nb_merge_streams = True
smartquotes = False  # they would make one dash of the two before an option
myst_enable_extensions = ["colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 3
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = project
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"footer_icons": [{"name": "repository", "url": settings["git_url"], "html": "The repository", "class": ""}]}


def readable(app, docname: str, source: list[str]):
    "A notebook without what serves nbdev and Colab alone: directives, hidden cells, the cell that installs."
    if Path(app.env.doc2path(docname)).suffix != ".ipynb":
        return
    notebook, kept = json.loads(source[0]), []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if not re.match(r'#\|\s*(hide|default_exp)\b|if "google.colab" in', text):
            cell["source"] = re.sub(r"(?m)^#\|.*\n?", "", re.sub(r"!\[Open in Colab\]\(.*?\)", "Open in Colab", text))
            kept.append(cell)
    source[0] = json.dumps(notebook | {"cells": kept})


def setup(app):
    app.connect("builder-inited", lambda app: write_reference(HERE / "reference"))
    app.connect("source-read", readable)
