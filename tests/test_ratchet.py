"""How large cells, modules and the public interface are: today's figures, which may get better but not worse."""

import ast
import json
import re
from pathlib import Path
from statistics import median, quantiles

from gzpaper.paper import root

NOTEBOOKS = sorted(root().glob("nbs/[0-9]*.ipynb"))
# Lower a figure when it has become better. Names that only other modules of the package use (`#| exporti`) are not public.
LIMITS = {"median lines of an exported cell": 9, "lines of nine in ten exported cells": 18, "lines of the longest exported cell": 39,
          "lines of the longest module": 600, "exported names": 234, "share of exported names not used in their own notebook": 0.0135}


def cells(path: Path) -> tuple[list[str], list[str]]:
    "The exported code cells of a notebook, and the others."
    sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    exported = [s for s in sources if s.startswith("#| export")]
    return exported, [s for s in sources if s not in exported]


def lines(cell: str) -> int:
    "Lines of code and comment."
    return len([line for line in cell.splitlines() if line.strip() and not line.startswith("#|")])


def public(path: Path) -> set[str]:
    "The names that a notebook's module exports."
    module = root() / f"gzpaper/{path.stem.split('_', 1)[1]}.py"
    return set(ast.literal_eval(re.search(r"__all__ = (\[.*?\])", module.read_text(), re.DOTALL)[1]))


def mentioned(code: list[str]) -> set[str]:
    "The names and attributes in some cells."
    nodes = [n for cell in code for n in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", cell, flags=re.MULTILINE)))]
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def measured() -> dict[str, float]:
    sizes = [lines(cell) for path in NOTEBOOKS for cell in cells(path)[0]]
    names = {path: public(path) for path in NOTEBOOKS}
    unused = [name for path, own in names.items() for name in own - mentioned(cells(path)[1])]
    modules = [len(path.read_text().splitlines()) for path in root().glob("gzpaper/[a-z]*.py")]
    total = sum(map(len, names.values()))
    return dict(zip(LIMITS, (median(sizes), quantiles(sizes, n=10)[-1], max(sizes), max(modules), total, len(unused) / total)))


def test_the_house_gets_no_worse():
    figures = measured()
    for name, value in figures.items():
        print(f"{name}: {value:.3g} (at most {LIMITS[name]:g})")
    assert {name: value for name, value in figures.items() if value > LIMITS[name]} == {}
