"""The whole chain on the smoke profile, once, and what happens when something changes."""
import json
import threading
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import edit
from PIL import Image

from gzpaper import chain, paper
from gzpaper.stop import Stopped
from gzpaper.tree import InputError

NAMES = paper.read_chain()["notebooks"]
CLAIMS = NAMES[-1:]  # sum up what the others have found
MOCKS = chain.read_profile("smoke")["mock_galaxies"]


def shorten(monkeypatch, names: list[str]):
    "Leave but some notebooks in the chain."
    whole = chain.plan
    monkeypatch.setattr(chain, "plan", lambda parameters: [step for step in whole(parameters) if step.name in names])


def due() -> list[str]:
    return [step.name for step in chain.plan(chain.read_profile("smoke")) if not step.fresh]


def test_everything_is_made_and_stamped(smoke):
    out = smoke / "runs/smoke"
    figures, tables = sorted(out.glob("figures/*.json")), sorted(out.glob("tables/*.json"))
    assert len(figures) >= 8 and len(tables) >= 5
    for note in figures + tables:
        about = json.loads(note.read_text())
        assert about["mock"] and about["profile"] == "smoke" and about["notebook"] in NAMES
        assert about["parameters"]["mock_galaxies"] == MOCKS
    opened = {about["notebook"] for about in map(json.loads, (n.read_text() for n in figures + tables)) if about["test_part"] == "opened"}
    assert opened == {paper.OPENS_TEST}
    for figure in figures:
        picture = Image.open(figure.with_suffix(".png")).convert("RGB")
        assert picture.width > 400 and len(picture.getcolors(2**24)) > 20  # not blank
        assert b"CreationDate" not in figure.with_suffix(".pdf").read_bytes()
    for table in tables:
        assert (pd.read_csv(table.with_suffix(".csv")).galaxies == paper._STAMP).all()
        assert paper._STAMP in table.with_suffix(".tex").read_text()
    assert [p.stem for p in sorted(out.glob("numbers/*.json"))] == NAMES
    assert pd.read_parquet(out / "unseen.parquet").GalaxyID.tolist() == sorted(pd.read_csv(out / "sample.csv").GalaxyID)
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF")
    assert list(out.rglob(".*partial*")) == []


def test_a_second_time_nothing_is_executed(smoke):
    assert chain.reproduce("smoke") == []


def test_only_what_depends_on_a_change_is_executed_again(smoke):
    profile, modules = smoke / "paper/profiles/smoke.yaml", smoke / "gzpaper"
    drawn, searched = ["10_evaluation"], ["07_tuning", "09_final", "10_evaluation"]
    changes = [
        (profile, "\nepochs: 3", "\nepochs: 2", ["03_vgg7"]),
        (modules / "scores.py", "n_init=10", "n_init=9", ["02_benchmarks", "03_vgg7", "09_final", "11_submission"]),
        (modules / "decoding.py", "CROP = 232", "CROP = 230", NAMES),
        (modules / "decoding.py", "CROP = 232", "CROP  =  232  # spaces and a comment", []),
        (modules / "study.py", 'startswith("round ")', 'startswith("round")', searched),
        (modules / "tune.py", "STALE_S = 3600", "STALE_S = 3601", []),  # a search is found, too
        (modules / "train.py", "math.sqrt(loss)", "loss**0.5", []),  # a run is found under its key
        (modules / "plots.py", "def confusion_grid(", "def confusion_grid(*, ", drawn),
        (paper.notebook_path(NAMES[1]), "What is reached", "What can be reached", ["02_benchmarks"]),
        (smoke / "paper/networks.yaml", "name: VGG16", "name: VGG-16", ["04_architectures"]),
    ]
    for path, old, new, expected in changes:
        kept = path.read_text()
        edit(path, old, new)
        try:
            assert due() == expected + CLAIMS * (0 < len(expected) < len(NAMES)), (path.name, new)
        finally:
            path.write_text(kept)
    assert due() == []


def test_an_output_that_is_gone_is_made_again(smoke):
    (smoke / "runs/smoke/figures/02_benchmarks.png").unlink()
    assert due() == ["02_benchmarks", *CLAIMS]
    assert chain.reproduce("smoke") == ["02_benchmarks", *CLAIMS]
    assert (smoke / "runs/smoke/figures/02_benchmarks.png").exists()


def test_a_failing_notebook_says_where_and_is_kept(smoke):
    path = paper.notebook_path("02_benchmarks")
    kept = path.read_text()
    edit(path, "floor = noise_floor(true)", "floor = noise_floor(false)")
    try:
        with pytest.raises(InputError, match=r"02_benchmarks failed in cell \d+: NameError.*02_benchmarks.failed.ipynb"):
            chain.reproduce("smoke")
        assert "NameError" in (smoke / "runs/smoke/notebooks/02_benchmarks.failed.ipynb").read_text()
        assert due() == ["02_benchmarks", *CLAIMS], "the notebook before it must not be executed again"
    finally:
        path.write_text(kept)
    assert chain.reproduce("smoke") == ["02_benchmarks", *CLAIMS]


def test_of_notebooks_at_once_all_that_fail_are_named(smoke, monkeypatch):
    "Those that wait for none are executed at once: one that fails does not hide another, and what could be made is kept."
    broken = {paper.notebook_path(name): paper.notebook_path(name).read_text() for name in ("02_benchmarks", "03_vgg7")}
    for path in broken:
        edit(path, "galaxies = section.galaxies(size, field)", "galaxies = section.no_galaxies(size, field)")
    monkeypatch.setattr(chain, "_AT_ONCE", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    try:
        with pytest.raises(InputError, match=r"02_benchmarks failed.*; notebook 03_vgg7 failed"):
            chain.reproduce("smoke", train=False)
        assert due() == ["02_benchmarks", "03_vgg7", *CLAIMS]
    finally:
        for path, text in broken.items():
            path.write_text(text)
    assert sorted(chain.reproduce("smoke", train=False)) == ["02_benchmarks", "03_vgg7", *CLAIMS]


def test_after_a_failure_no_other_is_begun(tmp_path, monkeypatch):
    begun, said = [], []

    def until(condition):
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)

    def execute(name: str, parameters: dict, out):
        begun.append(name)
        if name == "f":  # the last of the chain begins, and fails while another is under way
            until(lambda: "e" in begun)
            raise InputError("f failed")
        until(lambda: any(line.startswith("stopping") for line in said))

    monkeypatch.setattr(chain, "_execute", execute)
    monkeypatch.setattr(chain, "_AT_ONCE", 2)
    (tmp_path / "state").mkdir()
    steps = [chain.Step(name, {}, "", tmp_path / f"state/{name}.json", False, False) for name in "abcdef"]
    with pytest.raises(InputError, match="f failed"):
        chain._make_at_once(steps, tmp_path, said.append)
    assert "a" not in begun and any(line.startswith("stopping") for line in said)


def test_only_and_force(smoke, monkeypatch):
    assert chain.reproduce("smoke", only="01_dataset") == ["01_dataset"]
    with pytest.raises(InputError, match="no notebook '99_none'"):
        chain.reproduce("smoke", only="99_none")
    shorten(monkeypatch, NAMES[:2])
    assert chain.reproduce("smoke", force=True) == NAMES[:2]


def test_a_missing_run_is_an_error_when_nothing_may_be_trained(smoke):
    (smoke / "runs/smoke/runs").rename(smoke / "runs/smoke/elsewhere")
    try:
        with pytest.raises(InputError, match="not among the committed ones"):
            chain.reproduce("smoke", only="03_vgg7", train=False)
    finally:
        (smoke / "runs/smoke/elsewhere").rename(smoke / "runs/smoke/runs")
    assert chain.reproduce("smoke", train=False) == ["03_vgg7", *CLAIMS]


def test_another_search_space_makes_its_notebooks_due(smoke):
    edit(smoke / "paper/search/small.yaml", "high: 0.5", "high: 0.4")
    try:
        assert due() == ["07_tuning", "09_final", "10_evaluation", *CLAIMS]
    finally:
        edit(smoke / "paper/search/small.yaml", "high: 0.4", "high: 0.5")


def test_stopped_while_notebooks_are_drawn_at_once(monkeypatch, tmp_path):
    "Those under way end, and no other begins."
    begun, stopped = [], threading.Event()

    def make_one(*arguments):
        begun.append(arguments)
        stopped.wait(10)

    def wait(each, return_when):
        while not begun:
            time.sleep(0.01)
        raise Stopped

    monkeypatch.setattr(chain, "_make_one", make_one)
    monkeypatch.setattr(chain, "wait", wait)
    monkeypatch.setattr(chain, "end_children", stopped.set)
    steps = [SimpleNamespace(name=str(i)) for i in range(30)]
    with pytest.raises(Stopped):
        chain._make_at_once(steps, tmp_path, print)
    assert 0 < len(begun) <= chain._AT_ONCE
