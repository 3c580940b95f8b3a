"""The rules of the house that no single notebook can hold."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from gzpaper.chain import _declared
from gzpaper.files import read_yaml
from gzpaper.paper import read_chain, root
from gzpaper.run import RUN_FILES

ROOT = root()
LIBRARY = sorted(ROOT.glob("nbs/[0-9]*.ipynb"))
PAPER = sorted(ROOT.glob("nbs/paper/*.ipynb"))
CORE = ("tree files bands decoding images data volunteers mock scores loader models "
        "spec weights train predict run evaluate catalogue serve cli").split()


def cells(path: Path, kind: str = "code") -> list[dict]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def source(path: Path) -> str:
    return "\n".join("".join(c["source"]) for c in cells(path))


def imports(code: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(code)))
    plain = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}


def test_every_module_has_its_notebook():
    modules = {p.stem for p in ROOT.glob("gzpaper/*.py")} - {"__init__", "_modidx"}
    assert modules == {p.stem.split("_", 1)[1] for p in LIBRARY}


def test_export_and_clean_leave_the_tree_unchanged(tmp_path):
    for name in ("nbs", "gzpaper"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).parent / command], cwd=tmp_path, check=True, capture_output=True)
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert [p.name for p in before.keys() | after.keys() if before.get(p) != after.get(p)] == []


def test_readme_is_what_index_gives(tmp_path):
    here = [f"README={tmp_path / 'README.md'}", f"BIN={Path(sys.executable).parent}", "INSTALLED="]
    subprocess.run(["make", "-s", "readme", *here], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_the_citation_is_of_this_version():
    settings, citation = ConfigParser(), read_yaml(ROOT / "CITATION.cff")
    settings.read(ROOT / "settings.ini")
    own = settings["DEFAULT"]
    assert [citation[key] for key in ("version", "license", "repository-code")] == [own["version"], "MIT", own["git_url"]]


def test_the_documentation_names_every_notebook_and_the_readmes_links_lead_somewhere():
    library, paper = ((ROOT / f"docs/{name}.md").read_text() for name in ("library", "paper"))
    assert "/nbs/[0-9]*" in library and "/paper/notebooks/*" in paper
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 160
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_a_notebook_imports_only_from_smaller_numbers(path):
    numbers = {p.stem.split("_", 1)[1]: p.stem for p in LIBRARY}
    used = {m.split(".")[1] for m in imports(source(path)) if m.startswith("gzpaper.")}
    assert all(numbers[m] < path.stem for m in used), used


@pytest.mark.parametrize("path", [*ROOT.glob("gzpaper/[a-z]*.py"), *PAPER], ids=lambda p: p.stem)
def test_no_star_and_no_nbdev_import(path):
    code = path.read_text() if path.suffix == ".py" else source(path)
    assert not {m.split(".")[0] for m in imports(code)} & {"nbdev", "fastcore", "execnb"}
    assert not re.search(r"^\s*from .* import \*", code, re.MULTILINE)


def test_the_core_needs_no_extra():
    """Training and prediction import where papermill, GalSim, YAML and matplotlib are not installed."""
    missing = "papermill nbclient galsim yaml optuna typst astropy matplotlib seaborn nbdev peft torchinfo".split()
    block = f"import sys; sys.modules.update(dict.fromkeys({missing}))"
    modules = "; ".join(f"import gzpaper.{m}" for m in CORE)
    subprocess.run([sys.executable, "-c", f"{block}; {modules}"], check=True)


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_a_paper_notebook_has_one_parameters_cell_and_a_section(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    names = [line.split(":")[0] for line in "".join(tagged[0]["source"]).splitlines()]
    assert list(_declared(path.stem)) == names, "papermill does not read every parameter"
    opened = re.search(r'Section\("(\w+)", (.*?)\)\n', source(path) + "\n", re.DOTALL)
    assert opened and opened[1] == path.stem
    assert re.findall(r"(\w+)=\1", opened[2]) == names, "the section does not record every parameter"


def test_the_chain_has_every_paper_notebook():
    assert read_chain()["notebooks"] == [p.stem for p in PAPER]


def test_no_kept_output_names_a_place():
    kept = {p: json.dumps([c.get("outputs") for c in cells(p)]) for p in ROOT.glob("nbs/*.ipynb")}
    published = ("paper/notebooks/*", "paper/*/*.json", "paper/runs/*/*.json", "figures/*.json")
    kept |= {p: p.read_text() for kind in published for p in ROOT.glob(kind)}
    for path, text in kept.items():
        assert not re.search(r"/(home|Users|root|tmp|work|private)/", text), path.name


def test_torchvision_waits_until_its_networks_are_built():
    """It takes as long to load as torch itself, and the paper's network needs none of it."""
    source = "import sys, gzpaper.chain, gzpaper.cli; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0


def test_the_checkout_travels():
    """The committed tree stays under 22 MiB."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / os.fsdecode(f) for f in listed.stdout.split(b"\0") if f]
    assert sum(f.stat().st_size for f in files if f.exists()) < 22 * 2**20


def test_the_published_runs_are_committed():
    """What figures and tables name as their runs is in the repository, with all that drawing needs."""
    notes = [*ROOT.glob("figures/*.json"), *ROOT.glob("paper/tables/*.json")]
    keys = {key for note in notes for key in json.loads(note.read_text())["runs"]}
    listed = subprocess.run(["git", "ls-files", "paper/runs"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert keys and all(f"paper/runs/{key}/{file}" in listed.stdout.splitlines() for key in keys for file in RUN_FILES)
