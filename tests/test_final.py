"""Nested subsets for the learning curve, and the test part, which one section opens."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_says, toy_galaxies

from gzpaper import paper
from gzpaper.data import Galaxies, read_labels
from gzpaper.files import file_digest
from gzpaper.run import Run, more_predictions, run
from gzpaper.spec import Spec, run_key, split_rows
from gzpaper.train import _targets
from gzpaper.tree import COLUMNS, InputError, predictions_table
from gzpaper.weights import read_header

# Nested subsets


@pytest.mark.parametrize("folds", [{}, {"folds": 3, "fold": 2}], ids=["parts", "folds"])
def test_subsets_are_nested_and_learn_from_no_one_held_out(folds, tmp_path):
    galaxies = toy_galaxies(tmp_path, train=60, validation=20, test=10)
    learned, held_out = split_rows(Spec(**folds), galaxies)
    before = set()
    for n in (2, 15, 30):
        some, others = split_rows(Spec(subset=n, **folds), galaxies)
        np.testing.assert_array_equal(others, held_out)
        assert len(some) == n and before < set(some) < set(learned) and (np.diff(some) > 0).all()
        before = set(some)


def test_a_subset_is_a_sample_of_all_ids(tmp_path):
    "The first by the hash, not the first in the folder: their mean position is that of all."
    galaxies = toy_galaxies(tmp_path, train=2000, validation=10)
    some = split_rows(Spec(subset=400), galaxies)[0]
    assert abs(some.mean() / 1000 - 1) < 0.1


@pytest.mark.parametrize("n", [60, 61])
def test_a_subset_is_smaller_than_all(n, tmp_path):
    with pytest.raises(InputError) as refusal:
        split_rows(Spec(subset=n), toy_galaxies(tmp_path, train=60, validation=20))
    assert_says(str(refusal.value), f"subset is {n}", "60 training galaxies", "0, which means all")


def test_a_subset_is_not_negative():
    with pytest.raises(InputError, match="subset is -1: it takes 0 or more"):
        Spec(subset=-1)


def test_the_new_field_names_runs_anew_only_where_it_is_used():
    "Published runs keep their keys."
    assert run_key(Spec(subset=5), "") != run_key(Spec(), "")
    runs = sorted((paper.root() / "paper/runs").glob("*"))
    for one in (Run(folder.name, folder) for folder in runs):
        assert run_key(Spec.from_dict(one.about["spec"]), one.about["galaxies"], one.about["recipe"]) == one.key
    assert runs


# Further predictions of a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Run, Galaxies]:
    "A run of one epoch on toy galaxies."
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    galaxies = toy_galaxies(folder / "store", train=50, validation=10, test=12).sealed()
    spec = Spec(model_parameters={"width": 4, "hidden": 16}, size=16, field=185.6, epochs=1, batch_size=16)
    return run(spec, galaxies, folder / "runs", device="cpu"), galaxies


@pytest.mark.parametrize("part, rows", [("test", "test"), ("held_out", "validation")])
def test_further_predictions_are_of_the_part_that_is_asked_for(part, rows, trained):
    run, galaxies = trained
    one, many = (more_predictions(run, galaxies, part, views, "cpu") for views in (1, 16))
    for table in (one, many):
        assert table.GalaxyID.tolist() == galaxies.ids[galaxies.rows(rows)].tolist()
        assert np.isfinite(table[COLUMNS].to_numpy()).all()
    assert not one.equals(many)
    if part == "held_out":
        pd.testing.assert_frame_equal(many, run.predictions, atol=2e-3)


def test_further_predictions_are_small_and_outlive_the_weights(trained):
    run, galaxies = trained
    before = more_predictions(run, galaxies, "test", 16, "cpu")
    weights, elsewhere = run.folder / "weights.safetensors", run.folder / "elsewhere"
    weights.rename(elsewhere)
    try:
        pd.testing.assert_frame_equal(more_predictions(run, galaxies, "test", 16, "cpu"), before)
        (run.folder / "test-1.parquet").unlink(missing_ok=True)
        with pytest.raises(InputError) as refusal:
            more_predictions(run, galaxies, "test", 1, "cpu")
        assert_says(str(refusal.value), run.key, "test-1.parquet", "nor weights", "make reproduce")
    finally:
        elsewhere.rename(weights)
    assert pd.read_parquet(run.folder / "test-16.parquet")[COLUMNS].dtypes.eq(np.float16).all()


# Learning again


def test_a_network_learns_again_from_its_features_and_a_teacher(section, monkeypatch):
    "The first training is made only if the second has to be."
    first = Spec(model_parameters={"width": 4, "hidden": 16}, size=16, field=185.6, epochs=1, batch_size=16)
    again, one = replace(first, seed=1, teacher="a name"), section("09_final")
    galaxies = one.galaxies(16, 185.6)
    teacher = predictions_table(galaxies.ids, np.full((len(galaxies.ids), 37), 0.5))
    run = one.run(again, first, teacher)
    key = run_key(first, galaxies.digest)
    about = read_header(run.folder / "weights.safetensors")
    assert one.keys == [run.key]
    assert about["begun_as"] == first.to_dict() and about["spec"] == {**again.to_dict(), "pretrained": f"run-{key}"}
    assert run.about["pretraining"]["spec"] == first.to_dict()
    shutil.rmtree(run.folder.parent / key)
    monkeypatch.setattr("gzpaper.run.fit", lambda *_, **__: pytest.fail("trained what is there"))
    assert section("09_final").run(again, first, teacher) == run


def test_the_seconds_of_a_first_training_are_those_of_its_epochs(section):
    first = Spec(model_parameters={"width": 4, "hidden": 16}, size=16, field=185.6, epochs=2, batch_size=16)
    one = section("09_final")
    history = one.run(first).folder / "history.csv"
    pd.read_csv(history).assign(seconds=[40.0, 21.04]).to_csv(history, index=False)
    assert one.run(replace(first, seed=1), first).about["pretraining"]["seconds"] == 61.0


def test_a_first_training_may_see_the_galaxies_at_another_scale(section):
    one = section("09_final")
    first = Spec(model_parameters={"width": 4, "hidden": 16}, size=16, field=150.0, epochs=1, batch_size=16)
    run = one.run(replace(first, field=185.6, seed=1), first)
    assert run.about["pretraining"]["spec"]["field"] == 150.0


def test_a_run_whose_weights_are_gone_is_trained_again_to_begin_with(section):
    first = Spec(model_parameters={"width": 4, "hidden": 16}, size=16, field=185.6, epochs=1, batch_size=16)
    one = section("09_final")
    weights = one.run(first).folder / "weights.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    one.run(replace(first, seed=1), first)
    assert weights.read_bytes() == before


def test_targets_are_the_mean_of_label_and_teacher(tmp_path):
    "Row by row, however the teacher's table is sorted and whatever else it knows."
    galaxies = toy_galaxies(tmp_path, train=60, validation=20)
    learned = galaxies.rows("train")[5:40]
    told = np.random.default_rng(1).uniform(size=(80, 37))
    teacher = predictions_table(galaxies.ids, told).sample(frac=1, random_state=0)
    targets = _targets(Spec(teacher="a name"), galaxies, learned, teacher)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, (galaxies.labels[learned] + told[learned]) / 2, atol=1e-7)
    np.testing.assert_array_equal(_targets(Spec(), galaxies, learned, None), galaxies.labels[learned])
    for spec, table in ((Spec(), teacher), (Spec(teacher="a name"), None)):
        with pytest.raises(InputError, match="needs both"):
            _targets(spec, galaxies, learned, table)


def test_a_teacher_on_the_command_line(mock_folder, tmp_path, cli):
    "The same command goes on; another teacher is another training."
    labels = read_labels(mock_folder / "training_solutions_rev1.csv")
    labels.to_csv(tmp_path / "good.csv", index=False)
    labels[COLUMNS] = 0.5
    labels.to_csv(tmp_path / "half.csv", index=False)
    labels[:30].to_csv(tmp_path / "few.csv", index=False)
    labels[COLUMNS] = 1.5
    labels.to_csv(tmp_path / "large.csv", index=False)
    command = ["train", mock_folder, "--width", 2, "--size", 16, "--epochs", 1, "--batch-size", 16, "--validation", 8, "--test", 8,
               "--device", "cpu", "--out", tmp_path / "run", "--teacher"]
    cli(*command, tmp_path / "few.csv").refused("a teacher must have predictions for all training galaxies", "no prediction for GalaxyID")
    cli(*command, tmp_path / "large.csv").refused("large.csv", "1.5, outside [0, 1]")
    assert cli(*command, tmp_path / "half.csv").code == 0
    assert read_header(tmp_path / "run/weights.safetensors")["spec"]["teacher"] == file_digest(tmp_path / "half.csv")
    assert "trained already" in cli(*command, tmp_path / "half.csv").out
    cli(*command, tmp_path / "good.csv").refused("weights.safetensors", "other parameters or galaxies")


# The test part


@pytest.fixture
def section(mock_folder, tmp_path, monkeypatch):
    "A section on 40 mock galaxies, by its name."
    monkeypatch.setenv("GZPAPER_RUNS", str(tmp_path))
    common = {"profile": "none", "data": str(mock_folder), "mock_galaxies": 0, "seed": 0, "validation": 8, "test": 8}
    return lambda name: paper.Section(name, **common)


def test_several_at_the_same_study_ask_for_galaxies_at_once(section):
    several = section("07_tuning")
    several.galaxies(16, 212.0)
    with ThreadPoolExecutor(4) as pool:
        assert {g.digest for g in pool.map(lambda _: several.galaxies(16, 212.0), range(40))} == {several.digest}


def test_as_many_folds_are_trained_as_are_asked_for(section, monkeypatch):
    tuning = section("07_tuning")
    monkeypatch.setattr(tuning, "run", lambda spec: spec.fold)
    spec = Spec(size=16, folds=5)
    assert paper.cross_validation(tuning, spec) == [1, 2, 3, 4, 5]
    assert paper.cross_validation(tuning, spec, trained=2) == [1, 2]


def test_a_run_that_is_there_needs_no_pixels(section, monkeypatch):
    "Nor do further predictions that are; a run that is missing is refused before any is decoded."
    torch.set_num_threads(1)
    one = section("07_tuning")
    spec = Spec(model_parameters={"width": 4, "hidden": 16}, size=16, field=185.6, epochs=1, batch_size=16)
    before = paper.further_predictions(one, one.run(spec), "held_out", 1)
    again = section("07_tuning")
    again.digest = one.digest
    monkeypatch.setattr(again, "galaxies", lambda size, field: pytest.fail("decoded"))
    pd.testing.assert_frame_equal(paper.further_predictions(again, again.run(spec), "held_out", 1), before)
    monkeypatch.setenv("GZPAPER_TRAIN", "0")
    with pytest.raises(InputError, match="not among the committed ones"):
        again.run(replace(spec, seed=1))


def test_pictures_have_few_levels(section, mock_folder):
    "Those of figures, for fewer bytes; nothing that a network sees."
    some = section("01_dataset")
    ids = some.galaxies(16, 212.0).ids[:3]
    pictures = paper.pictures(some, ids, 40)
    assert pictures.shape == (3, 40, 40, 3) and pictures.dtype == np.uint8 and not (pictures % 5).any() and pictures.max() > 50
    whole = paper.pictures(some, ids, 40, step=1)
    assert (whole % 5).any() and np.abs(whole.astype(int) - pictures).max() <= 2


def test_no_other_section_can_open_it(section):
    other = section("01_dataset")
    with pytest.raises(InputError) as refusal:
        paper.open_test(other, other.galaxies(16, 212.0))
    assert_says(str(refusal.value), "01_dataset", "only 09_final")
    assert other.test_part == "sealed"


def test_what_is_opened_are_the_labels_of_the_same_galaxies(section, mock_folder):
    final = section(paper.OPENS_TEST)
    sealed = final.galaxies(16, 212.0)
    opened = paper.open_test(final, sealed)
    np.testing.assert_array_equal(opened.ids, sealed.ids)
    test = sealed.part == "test"
    assert np.isnan(sealed.labels[test]).all() and opened.digest == sealed.digest
    np.testing.assert_array_equal(opened.labels[~test], sealed.labels[~test])
    labels = pd.read_csv(mock_folder / "training_solutions_rev1.csv").set_index("GalaxyID").loc[opened.ids, COLUMNS]
    np.testing.assert_array_equal(opened.labels, labels.to_numpy(np.float32))


def test_provenance_says_whether_it_was_opened(section, tmp_path):
    final = section(paper.OPENS_TEST)
    galaxies, table = final.galaxies(16, 212.0), pd.DataFrame({"n": [1]})
    final.table("before", table, "")
    paper.open_test(final, galaxies)
    final.table("after", table, "")
    said = {name: json.loads((tmp_path / f"none/tables/{name}.json").read_text())["test_part"] for name in ("before", "after")}
    assert said == {"before": "sealed", "after": "opened"}
