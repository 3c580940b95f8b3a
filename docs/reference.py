"""The reference: a page for each module, from docstrings and docments, and a page for the command line, from its help."""

import inspect
import json
import re
from functools import cached_property
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from types import FunctionType, MethodType

import typer
from fastcore.docments import docments
from typer.cli import get_docs_for_click

from gzpaper.cli import _app

NOTEBOOKS = sorted((Path(__file__).parent.parent / "nbs").glob("[0-9]*.ipynb"))


class Written(str):
    "A value as it is written in Python; an ellipsis where that is long or no Python."
    def __new__(cls, value):
        text = repr(value)
        return super().__new__(cls, text if len(text) <= 60 and not re.search(r"[<\n]", text) else "...")

    __repr__ = str.__str__


def signature(thing) -> str:
    "The parameters with their defaults; their types stand in the table."
    parameters = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    defaults = [p.default if p.default is p.empty else Written(p.default) for p in parameters]
    return str(inspect.Signature([p.replace(annotation=p.empty, default=d) for p, d in zip(parameters, defaults)]))


def table(thing) -> list[str]:
    "What each parameter is, and what comes back."
    found = docments(thing, full=True)
    told = {name: (of["anno"] if isinstance(of["anno"], str) else "", of["docment"] or "") for name, of in found.items()}
    rows = [(f"`{name}`", *told[name]) for name in told if name not in ("self", "return")]
    rows += [("*returns*", *told["return"])] if any(told.get("return", ())) else []
    cells = [(name, f"`{kind}`" if kind else "", what) for name, kind, what in rows]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    return ["", "| | type | |", "| --- | --- | --- |", *lines, ""] if lines else []


def entry(kind: str, name: str, thing, *body: str) -> list[str]:
    "A function, or a class with its public members, as a directive of Sphinx; directives inside of others have shorter fences."
    members = inspect.getmembers(thing) if kind == "class" else []
    parts = [inspect.getdoc(thing) or "", *(table(thing) if kind != "property" else []), *body]
    for member, of in members:
        if member[0] != "_" and isinstance(of, property | cached_property):
            parts += entry("property", member, of)
        elif member[0] != "_" and isinstance(of, FunctionType | MethodType) and (of.__module__ or "").startswith("gzpaper"):
            parts += entry("method", member, of)
    fence = ":" * (8 if kind in ("class", "function") else 6)
    return [f"{fence}{{py:{kind}}} {name}{'' if kind == 'property' else signature(thing)}", "", *parts, fence, ""]


def constant(name: str, value, code: str, link: str) -> list[str]:
    "A constant with its value and the comment behind it."
    comment = re.search(rf"^{name} = (?:[^\n]|\n(?!\n))*?  # ([^\n]*)$", code, re.M)
    value = [f":value: {Written(value)}"] if Written(value) != "..." else []
    return [f"::::::{{py:data}} {name}", *value, "", comment[1] if comment else "", "", link, "::::::", ""]


def origin(notebook: Path, name: str) -> str:
    "A link to the part of a notebook that defines a name."
    title = place = ""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if re.search(rf"^((def|class) {name}\b|{name} =)", text, re.M):
            break
        if cell["cell_type"] == "markdown" and (found := re.match(r"#+ (.*)", text)):
            title, place = found[1], re.sub(r"[^\w\- ]", "", found[1].lower()).replace(" ", "-")
    return f"[{title}, with examples](/nbs/{notebook.name}#{place})"


def page(notebook: Path) -> str:
    "The page of the module that a notebook exports; empty where nothing is public."
    module = import_module(f"gzpaper.{notebook.stem.split('_', 1)[1]}")
    parts = [f"# {module.__name__}", module.__doc__, f":::{{py:module}} {module.__name__}\n:::", ""]
    for name in module.__all__:
        thing, link = getattr(module, name), origin(notebook, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            parts += entry("class" if inspect.isclass(thing) else "function", name, thing, link)
        else:
            parts += constant(name, thing, inspect.getsource(module), link)
    return "\n".join(parts) if module.__all__ else ""


def write_reference(folder: Path):
    "All pages, anew."
    rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pages = {notebook.stem.split("_", 1)[1]: page(notebook) for notebook in NOTEBOOKS}
    for name, text in pages.items():
        if text:
            (folder / f"{name}.md").write_text(text, encoding="utf-8")
    rows = [f"| [gzpaper.{name}]({name}.md) | {import_module(f'gzpaper.{name}').__doc__} |" for name, text in pages.items() if text]
    listed = [name for name, text in pages.items() if text]
    contents = ["# Functions and classes", "", "Every public name, by module.", "", "| module | |", "| --- | --- |", *rows, ""]
    contents += ["```{toctree}", ":hidden:", "", *listed, "```", ""]
    (folder / "index.md").write_text("\n".join(contents), encoding="utf-8")
    command = typer.main.get_command(_app)
    told = get_docs_for_click(obj=command, ctx=typer.Context(command), name="gzpaper", title="Commands and options")
    (folder / "commands.md").write_text(told, encoding="utf-8")
