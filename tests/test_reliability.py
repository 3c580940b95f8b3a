"""A few points of benchmarks/reliability.py: what is killed, stopped or started twice loses nothing, and goes on."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from gzpaper import files
from gzpaper.files import atomic
from gzpaper.paper import root

sys.path.append(str(root() / "benchmarks"))
reliability = pytest.importorskip("reliability", reason="no benchmarks here")
pytestmark = [pytest.mark.usefixtures("threads"), pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    "Where the commands run, each in a folder of its own."
    pytest.importorskip("galsim", reason="mock galaxies need GalSim: install gzpaper[paper]")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reliability").resolve()
    reliability.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def alone(base) -> dict:
    "What the commands leave when nothing disturbs them, how many changes they make, and how long they take."
    return {what: reliability.undisturbed(what, base) for what in ("predict", "train", "tune")}


def assert_right(told: dict):
    assert told["right"] and not told["lost"] and not told["differing"] and not told["traceback"], told


@pytest.mark.parametrize("what, share", [("predict", 0.7), ("predict", 0.85), ("predict", 0.95), ("train", 0.5), ("tune", 0.2)])
def test_killed_at_a_change(base, alone, what, share):
    left, changes, _ = alone[what]
    told = reliability.kill_point((what, base, max(1, round(share * changes)), 0, left))
    assert told["codes"] == [-signal.SIGKILL, 0]
    assert_right(told)


@pytest.mark.parametrize("what", ["predict", "train"])
def test_two_at_once(base, alone, what):
    "The first is stopped in the midst of its work until the second has said that it waits, or who is at work."
    left, changes, _ = alone[what]
    told = reliability.pair_point((what, base, changes // 2, 0, left))
    assert told["met"], told
    assert_right(told)


@pytest.mark.parametrize("what, number, once", [("predict", signal.SIGINT, "*.parts"), ("train", signal.SIGTERM, "run/checkpoint.pt")])
def test_stopped(base, alone, what, number, once):
    told = reliability.signal_point((what, base, number, once, alone[what][0]))
    assert told["codes"] == [128 + number, 0], told
    assert_right(told)


@pytest.mark.parametrize("change", ["nothing", "removed", "changed", "added", "mixed"])
def test_a_folder_published_by_half_is_seen(tmp_path, change):
    for name in reliability.published():
        (tmp_path / name).mkdir(parents=True)
        for i in range(2):
            (tmp_path / name / f"{i}.csv").write_text(name)
    wanted, figures = reliability.what_is_left("publish", tmp_path), tmp_path / "figures"
    if change == "removed":
        (figures / "1.csv").unlink()
    elif change == "changed":
        (figures / "1.csv").write_text("half")
    elif change != "nothing":
        (figures / {"added": "2.csv", "mixed": "old.txt"}[change]).write_text("old")
    assert reliability.half_published(tmp_path, wanted) == ([] if change == "nothing" else ["figures"])


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_in_one_step(tmp_path, monkeypatch, exchanges):
    "Killed at any change, the old or the new one is there whole: at once, or where names cannot be exchanged, once another writes."
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    if not exchanges:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    elif not files._exchanged(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this system cannot exchange two names")

    def write(version: str):
        with atomic(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / "file").write_text(version)

    for number in range(1, 12):
        write("old")
        if not (pid := os.fork()):
            reliability.deadly(tmp_path, number, reliability.shared())
            write("new")
            os._exit(0)
        reliability.wait(pid)
        if not exchanges:
            with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "folder"):
                raise KeyboardInterrupt
        assert (tmp_path / "folder/file").read_text() in ("old", "new"), number


@pytest.mark.parametrize("arguments, name, content, word", [
    (["tune", "status", "--storage", "x.journal"], "x.journal", "Monday: rain\n", "was not written by gzpaper"),
    (["pretrain", "out", "--galaxies", "40", "--epochs", "1"], "out/mock/mine.txt", "mine", "exists"),
    (["tune", "--data", ".", "--space", "s.yaml", "--params", "mine.yaml"], "mine.yaml", "width: 8\n", "was not written by gzpaper"),
])
def test_what_gzpaper_did_not_make_stays(cli, tmp_path, monkeypatch, arguments, name, content, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(reliability.SPACE)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    cli(*arguments).refused(name.split("/mine")[0], word)
    assert (tmp_path / name).read_text() == content


def test_two_tables_do_not_share_a_list(base, cli, tmp_path):
    "p.csv and p.parquet would have one list of unusable images."
    predict = ["predict", base / "images", "--weights", base / "weights.safetensors", "--rotations", 1, "--skip-bad", "--device", "cpu"]
    assert cli(*predict, "--out", tmp_path / "p.csv").code == 0
    before = (tmp_path / "p.bad.csv").read_text()
    cli(*predict, "--out", tmp_path / "p.parquet").refused("p.bad.csv", "p.csv", "name another --out")
    assert (tmp_path / "p.bad.csv").read_text() == before
    assert cli(*predict, "--out", tmp_path / "p.csv", "--overwrite").code == 0
