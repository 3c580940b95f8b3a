"""Nested subsets for the learning curve, and the test part, which one section opens."""

import numpy as np
import pytest
from conftest import assert_says, toy_galaxies

from gzpaper import chain
from gzpaper.train import Spec, split_rows
from gzpaper.tree import InputError

# Nested subsets


@pytest.mark.parametrize("folds", [{}, {"folds": 3, "fold": 2}], ids=["parts", "folds"])
def test_subsets_are_nested_and_learn_from_no_one_held_out(folds, tmp_path):
    galaxies = toy_galaxies(tmp_path, train=60, validation=20, test=10)
    learned, held_out = split_rows(Spec(**folds), galaxies)
    before = set()
    for n in (2, 15, 30):
        some, others = split_rows(Spec(galaxies=n, **folds), galaxies)
        np.testing.assert_array_equal(others, held_out)
        assert len(some) == n and before < set(some) < set(learned) and (np.diff(some) > 0).all()
        before = set(some)


def test_a_subset_is_a_sample_of_all_ids(tmp_path):
    "The first by the hash, not the first in the folder: their mean position is that of all."
    galaxies = toy_galaxies(tmp_path, train=2000, validation=10)
    some = split_rows(Spec(galaxies=400), galaxies)[0]
    assert abs(some.mean() / 1000 - 1) < 0.1


@pytest.mark.parametrize("n", [60, 61])
def test_a_subset_is_smaller_than_all(n, tmp_path):
    with pytest.raises(InputError) as refusal:
        split_rows(Spec(galaxies=n), toy_galaxies(tmp_path, train=60, validation=20))
    assert_says(str(refusal.value), f"galaxies is {n}", "60 to learn from", "0, which is all")


def test_a_subset_is_not_negative():
    with pytest.raises(InputError, match="galaxies is -1: it takes 0 or more"):
        Spec(galaxies=-1)


def test_the_new_field_names_runs_anew_only_where_it_is_used():
    "Published runs keep their keys."
    assert chain.run_key(Spec(galaxies=5).to_dict(), "") != chain.run_key(Spec().to_dict(), "")
    runs = sorted((chain.root() / "paper/runs").glob("*"))
    for run in (chain.Run(folder.name, folder) for folder in runs):
        assert chain.run_key(Spec.from_dict(run.about["spec"]).to_dict(), run.about["galaxies"], run.about["recipe"]) == run.key
    assert runs
