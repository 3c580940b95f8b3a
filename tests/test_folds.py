"""Cross-validation: a prediction of each galaxy by a network that has not learned it, once; stopped anywhere it goes on, fold by fold."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, assert_says, toy_galaxies

import gzpaper.predict
from gzpaper.data import Galaxies, read_table
from gzpaper.data import folds as fold_numbers
from gzpaper.files import atomic
from gzpaper.images import PixelStore
from gzpaper.predict import predict_held_out
from gzpaper.run import cross_validate
from gzpaper.scores import rmse
from gzpaper.spec import Spec, split_rows
from gzpaper.train import Training
from gzpaper.tree import COLUMNS, InputError
from gzpaper.weights import load_weights, read_header

pytestmark = pytest.mark.usefixtures("threads")
SPEC = Spec(model_parameters={"width": 4, "hidden": 16}, size=16, field=185.6, epochs=2, batch_size=16, folds=3)
FILES = {"history.csv", "weights.safetensors", "predictions.parquet"}  # of a fold


def toys(folder: Path) -> Galaxies:
    return toy_galaxies(folder, train=50, validation=10, test=12).sealed()


def validate(folder: Path, spec: Spec = SPEC, only: int = 0, galaxies: Galaxies | None = None) -> pd.DataFrame:
    torch.set_num_threads(1)
    return cross_validate(spec, galaxies or toys(folder.with_name(f"{folder.name}-store")), folder, only, progress=False)


@contextmanager
def lessons():
    "The fold of each epoch that is trained, and the GalaxyIDs that it learns from."
    found, epoch = [], Training.epoch

    def noted(training: Training, *arguments):
        found.append((training.spec.fold, training.batches.store.ids[training.batches.rows].tolist()))
        return epoch(training, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "epoch", noted)
        yield found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, pd.DataFrame, list]:
    "A finished cross-validation: its folder, its scores and its lessons."
    folder = tmp_path_factory.mktemp("folds") / "whole"
    with lessons() as found:
        scores = validate(folder)
    return folder, scores, found


def tables(folder: Path) -> dict[int, pd.DataFrame]:
    "The predictions of each fold that has some."
    return {fold: pd.read_parquet(folder / f"fold-{fold}/predictions.parquet")
            for fold in range(1, 9) if (folder / f"fold-{fold}/predictions.parquet").exists()}


def test_each_galaxy_once_by_a_network_that_has_not_learned_it(whole):
    folder, _, found = whole
    galaxies = toys(folder.with_name("store"))
    outside = galaxies.ids[galaxies.part != "test"].tolist()
    together = read_table(folder / "out_of_fold.csv", complete=True)
    assert together.GalaxyID.tolist() == outside
    assert [fold for fold, _ in found] == [1, 1, 2, 2, 3, 3]
    for fold, learned in found:
        assert sorted(learned + tables(folder)[fold].GalaxyID.tolist()) == outside
    for fold, table in tables(folder).items():
        assert {f.name for f in (folder / f"fold-{fold}").iterdir()} == FILES
        held_out = split_rows(replace(SPEC, fold=fold), galaxies)[1]
        again = predict_held_out(folder / f"fold-{fold}/weights.safetensors", galaxies, held_out)
        pd.testing.assert_frame_equal(table, again)
        chosen = together[together.GalaxyID.isin(table.GalaxyID)]
        np.testing.assert_allclose(chosen[COLUMNS], table[COLUMNS], atol=1e-6)
        assert read_header(folder / f"fold-{fold}/weights.safetensors")["spec"]["fold"] == fold


def test_scores(whole):
    folder, scores, _ = whole
    labels = toys(folder.with_name("store")).labels
    expected = [(fold, len(table), rmse(table[COLUMNS].to_numpy(), labels[table.GalaxyID])) for fold, table in tables(folder).items()]
    pd.testing.assert_frame_equal(scores, pd.DataFrame(expected, columns=["fold", "galaxies", "rmse"]))
    pd.testing.assert_frame_equal(pd.read_csv(folder / "folds.csv"), scores)


def state(folder: Path, fold: int) -> dict[str, torch.Tensor]:
    return load_weights(folder / f"fold-{fold}/weights.safetensors")[0].state_dict()


def same(one: Path, other: Path, fold: int) -> bool:
    "Whether a fold's weights are the same in two folders, bit for bit."
    first, second = state(one, fold), state(other, fold)
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("who", ["held out", "test"])
def test_nothing_is_learned_from_others(who, whole, tmp_path):
    "Pixels and labels of those held out, or of the test part, do not change a bit of what is learned."
    folder, galaxies = whole[0], toys(tmp_path / "store")
    test = galaxies.part == "test"
    others = test if who == "test" else ~test & (fold_numbers(galaxies.ids, SPEC.folds) == 0)
    pixels, labels = np.load(tmp_path / "store/pixels.npy"), galaxies.labels.copy()
    pixels[others], labels[others] = 255 - pixels[others], 1 - labels[others]
    (tmp_path / "changed").mkdir()
    np.save(tmp_path / "changed/pixels.npy", pixels)
    store = PixelStore(tmp_path / "changed", galaxies.ids, galaxies.store.digests, np.zeros((72, 3)), 20)
    validate(tmp_path / "run", galaxies=Galaxies(store, labels, galaxies.part, is_mock=True))
    assert same(tmp_path / "run", folder, 1)
    assert [same(tmp_path / "run", folder, fold) for fold in (2, 3)] == [who == "test"] * 2


# Stopped and taken up again


def validate_until(folder: Path, fold: int, name: str):
    "Cross-validate, and be killed when the file `name` of a fold is half written."
    @contextmanager
    def deadly(path: Path, *options):
        with atomic(path, *options) as partial:
            yield partial
            if path == folder / f"fold-{fold}/{name}":
                os.truncate(partial, partial.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    gzpaper.predict.atomic = gzpaper.train.atomic = gzpaper.weights.atomic = deadly
    validate(folder)


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    "When each file of finished folds was written, and what it says."
    done = [f for f in folder.glob("fold-*") if FILES <= {file.name for file in f.iterdir()}]
    return {f"{f.name}/{file.name}": (file.stat().st_mtime_ns, file.read_bytes()) for f in done for file in f.iterdir()}


KILLED = {  # the file of a fold that is half written, and the epochs of each fold that are then still to be trained
    "between folds": (2, "history.csv", [2, 2, 3, 3]),
    "in a fold": (3, "weights.safetensors", []),
    "before its predictions": (2, "predictions.parquet", [3, 3]),
}


@pytest.mark.parametrize("when", KILLED)
def test_killed(when, whole, tmp_path):
    "Finished folds are not touched, and the end is the same as that of a cross-validation left alone."
    fold, name, left = KILLED[when]
    folder = tmp_path / "run"
    code = f"from pathlib import Path; from test_folds import validate_until; validate_until(Path({str(folder)!r}), {fold}, {name!r})"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent).returncode == -signal.SIGKILL
    before = stamps(folder)
    assert {Path(file).parent.name for file in before} == {f"fold-{n}" for n in range(1, fold)}
    assert not (folder / "out_of_fold.csv").exists()
    with lessons() as found:
        scores = validate(folder)
    assert [n for n, _ in found] == left
    after = stamps(folder)
    assert {file: after[file] for file in before} == before
    pd.testing.assert_frame_equal(scores, whole[1])
    assert (folder / "out_of_fold.csv").read_bytes() == (whole[0] / "out_of_fold.csv").read_bytes()
    assert all(same(folder, whole[0], fold) for fold in (1, 2, 3))


def test_one_fold_after_the_other(whole, tmp_path):
    "In whatever order they are trained alone, the last one makes the table of all."
    for fold, finished in [(2, [2]), (1, [1, 2]), (3, [1, 2, 3])]:
        with lessons() as found:
            scores = validate(tmp_path / "run", only=fold)
        assert {n for n, _ in found} == {fold} and scores.fold.tolist() == finished
        assert (tmp_path / "run/out_of_fold.csv").exists() == (len(finished) == 3)
    assert (tmp_path / "run/out_of_fold.csv").read_bytes() == (whole[0] / "out_of_fold.csv").read_bytes()


MIXED = {  # what is different when the other folds are to be trained
    "parameters": {"learning_rate": 0.01},
    "number of folds": {"folds": 4},
    "seed": {"seed": 1},
}


@pytest.mark.parametrize("difference", MIXED)
def test_folds_of_different_trainings_are_not_mixed(difference, whole, tmp_path):
    shutil.copytree(whole[0] / "fold-1", tmp_path / "run/fold-1")
    with pytest.raises(InputError) as refusal, lessons() as found:
        validate(tmp_path / "run", replace(SPEC, **MIXED[difference]), only=3)
    assert_says(str(refusal.value), tmp_path / "run/fold-1", "other parameters or galaxies", "name another folder")
    assert not found and not (tmp_path / "run/out_of_fold.csv").exists()


# The command line


def test_command(mock_folder, tmp_path, cli):
    "A fold alone, then all: the scores of each, their mean and their spread; a second time nothing is trained."
    out, options = tmp_path / "run", ["--folds", 3, "--batch-size", 8, "--validation", 1000]  # of which there is none
    command = ["train", mock_folder, "--out", out, *TINY, *options]
    alone = cli(*command, "--fold", 2)
    assert alone.code == 0 and not (out / "out_of_fold.csv").exists()
    score = pd.read_csv(out / "folds.csv").rmse[0]
    assert_says(alone.out, f"RMSE {score:.5f} over 1 of 3 folds", out)
    assert "nan" not in alone.out.lower()
    done = cli(*command)
    scores = pd.read_csv(out / "folds.csv")
    assert done.code == 0 and scores.fold.tolist() == [1, 2, 3] and scores.galaxies.sum() == 32
    assert_says(done.out, f"RMSE {np.mean(scores.rmse):.5f}, spread {np.std(scores.rmse, ddof=1):.5f} over 3 of 3 folds", out)
    assert [float(found) for found in re.findall(r"^ +\d +\d+ ([\d.]+)$", done.out, re.MULTILINE)] == scores.rmse.round(5).tolist()
    with lessons() as found:
        assert cli(*command).out == done.out
    assert not found
    assert len(read_table(out / "out_of_fold.csv", complete=True)) == 32
