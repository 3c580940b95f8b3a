"""The documentation: its commands parse, it builds without a warning, no link is broken, and search knows what users look for."""

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from gzpaper.cli import _app
from gzpaper.paper import root

PAGES = sorted([*root().glob("docs/*.md"), root() / "README.md", root() / "cluster/README.md", root() / "data/README.md"])


def commands(page: Path) -> list[str]:
    "What a page tells to type: lines of its blocks of shell code, and words between backticks that begin with the command's name."
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`(gzpaper [a-z][^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + inline
    return [line[line.index("gzpaper ") :] for line in lines if re.match(r"(gzpaper|torchrun .*?) ", line) and "gzpaper " in line]


def wrong(line: str) -> str:
    "What the command line does not know of a command: a subcommand or an option; empty if it knows all."
    words, command = shlex.split(line, comments=True)[1:], typer.main.get_command(_app)
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    if getattr(command, "commands", None) and not getattr(command, "invoke_without_command", False) and words:
        return words[0]
    known = {"--help"} | {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return " ".join(word for word in words if word.startswith("--") and word not in known)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_commands_parse(page):
    found = commands(page)
    assert [line for line in found if wrong(line)] == []
    assert found or page.stem in {"library", "measured", "released", "paper", "README"}


def test_a_command_that_does_not_exist_is_noticed():
    assert wrong("gzpaper predicts images") == "predicts" and wrong("gzpaper data fetch x") == "fetch"
    assert wrong("gzpaper predict images --resume") == "--resume" and not wrong("gzpaper tune status --out x  # a comment")


class Page(HTMLParser):
    "The links and anchors of a page."
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.links |= {value for name, value in attributes if name in ("href", "src") and value}
        self.anchors |= {value for name, value in attributes if name in ("id", "name")}


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    "The site, built anew."
    missing = [name for name in ("sphinx", "myst_nb", "furo", "sphinx_copybutton") if find_spec(name) is None]
    if missing:
        pytest.skip(f"the documentation needs {', '.join(missing)}: pip install 'gzpaper[docs]'")
    made = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-d", made.parent / "doctrees", ".", made]
    done = subprocess.run(command, cwd=root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return made


def test_no_link_is_broken(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or parts.netloc:
                continue
            if not target.exists() or parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 60 and broken == []


def test_search_knows_commands_and_functions(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    for word in ("predict", "tree_softmax"):
        assert re.search(rf'"?{word}"?:', index), word


def test_notebooks_show_results_and_nothing_of_nbdev(site):
    texts = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("nbs/*.html")}
    assert set(texts) == {path.stem for path in root().glob("nbs/[0-9]*.ipynb")}
    shown = {name: re.sub(r'href="[^"]*"', "", text) for name, text in texts.items()}
    assert not [name for name, text in shown.items() if re.search(r"#\| ?(export|hide|default)|google\.colab", text)]
    assert '<img alt="' in texts["19_plots"] and "cell_output" in texts["00_tree"]


def test_every_public_name_is_in_the_reference(site):
    from importlib import import_module

    for path in site.glob("docs/reference/[a-z]*.html"):
        if path.stem not in ("index", "commands"):
            anchors = Page(path).anchors
            assert not [n for n in import_module(f"gzpaper.{path.stem}").__all__ if f"gzpaper.{path.stem}.{n}" not in anchors], path.stem
