"""The mock set: the same galaxies whatever the processes, Kaggle's layout, and volunteers who vote as the truth says."""

import hashlib

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("galsim")

from PIL import Image

from gzpaper import mock
from gzpaper.scores import rmse
from gzpaper.tree import COLUMNS, InputError, check_labels
from gzpaper.volunteers import _expected_floor, _label_variance, draw_volunteers, expected_labels, labels_from_votes, vote

HEADER = "GalaxyID," + ",".join(COLUMNS)
TRUE = [f"true_{column}" for column in COLUMNS]


def digests(folder):
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return mock.write_mock(tmp_path_factory.mktemp("mock") / "set", galaxies=12, test_galaxies=3, seed=5, processes=1, progress=False)


def test_layout(small):
    labels, truth = pd.read_csv(small / "training_solutions_rev1.csv"), pd.read_csv(small / "truth.csv")
    assert (small / "training_solutions_rev1.csv").read_text().splitlines()[0] == HEADER
    training = sorted(int(f.stem) for f in (small / "images_training_rev1").glob("*.jpg"))
    test = sorted(int(f.stem) for f in (small / "images_test_rev1").glob("*.jpg"))
    assert training == labels.GalaxyID.tolist() and len(training) == 12 and len(test) == 3
    assert truth.GalaxyID.tolist() == sorted(training + test) and truth.GalaxyID.between(100_000, 999_999).all()
    assert truth.set_index("GalaxyID").part.loc[test].eq("test").all()
    assert check_labels(labels).empty and check_labels(truth[["GalaxyID", *TRUE]].set_axis(["GalaxyID", *COLUMNS], axis=1)).empty
    picture = Image.open(small / "images_training_rev1" / f"{training[0]}.jpg")
    assert picture.size == (424, 424) and picture.mode == "RGB" and picture.format == "JPEG"


def test_processes_do_not_matter(small, tmp_path):
    other = mock.write_mock(tmp_path / "set", galaxies=12, test_galaxies=3, seed=5, processes=2, progress=False)
    assert digests(small) == digests(other)


def test_a_smaller_set_is_a_part_of_a_larger_one(small, tmp_path):
    part = mock.write_mock(tmp_path / "set", galaxies=3, test_galaxies=1, seed=5, processes=1, progress=False)
    large, little = digests(small), digests(part)
    assert all(large[name] == digest for name, digest in little.items() if name.endswith(".jpg"))
    for name in ("training_solutions_rev1.csv", "truth.csv"):
        assert set((part / name).read_text().splitlines()) <= set((small / name).read_text().splitlines())


def test_seeds_differ(small, tmp_path):
    other = mock.write_mock(tmp_path / "set", galaxies=3, test_galaxies=0, seed=6, processes=1, progress=False)
    assert not {d for n, d in digests(small).items()} & {d for n, d in digests(other).items()}
    assert not set(pd.read_csv(small / "truth.csv").GalaxyID) & set(pd.read_csv(other / "truth.csv").GalaxyID)


def test_ids_are_distinct():
    ids = [mock.galaxy_id(3, slot) for slot in range(50_000)]
    assert len(set(ids)) == len(ids) and min(ids) >= 100_000 and max(ids) <= 999_999


def test_an_existing_folder_is_refused(small, tmp_path):
    before = digests(small)
    with pytest.raises(InputError, match="exists: delete it"):
        mock.write_mock(small, galaxies=1, processes=1, progress=False)
    assert digests(small) == before
    for wrong in (dict(galaxies=0), dict(test_galaxies=-1), dict(seed=-1), dict(processes=0)):
        with pytest.raises(InputError):
            mock.write_mock(tmp_path / "set", progress=False, **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("processes", "error"), [(1, RuntimeError), (1, KeyboardInterrupt), (2, RuntimeError)])
def test_an_interrupted_set_leaves_nothing(tmp_path, monkeypatch, processes, error):
    if processes > 1 and mock._START_METHOD != "fork":
        pytest.skip("only a forked worker takes the patch")
    whole = mock._render

    left = [2]

    def broken(galaxy, rng):
        left[0] -= 1
        if left[0] < 0:
            raise error("no more")
        return whole(galaxy, rng)

    monkeypatch.setattr(mock, "_render", broken)
    with pytest.raises(error):
        mock.write_mock(tmp_path / "deep" / "set", galaxies=9, processes=processes, progress=False)
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_written_floor_is_that_of_the_votes(small):
    truth, labels = pd.read_csv(small / "truth.csv"), pd.read_csv(small / "training_solutions_rev1.csv")
    truth = truth[truth.part == "training"]
    exact = rmse(truth[TRUE].to_numpy(), labels[COLUMNS].to_numpy())
    assert exact == pytest.approx(_expected_floor(truth[TRUE].to_numpy(), truth.volunteers.to_numpy()), rel=0.25)
    assert truth.volunteers.min() >= 16


def crowds(fractions, volunteers, repeats, seed=0):
    many = np.broadcast_to(fractions, (repeats, len(fractions)))
    return labels_from_votes(vote(many, volunteers, np.random.default_rng(seed)))


def many_fractions(n, seed):
    rng = np.random.default_rng(seed)
    fractions = np.stack([mock.answer_probabilities(mock.draw_galaxy(rng)) for _ in range(n)])
    return fractions, np.array([draw_volunteers(rng) for _ in range(n)])


def test_labels_average_to_the_truth():
    "Over many galaxies, each column's mean error stays within five of its standard errors."
    fractions, volunteers = many_fractions(4000, seed=1)
    rng = np.random.default_rng(2)
    labels = labels_from_votes(vote(fractions, volunteers, rng))
    truth = expected_labels(fractions, volunteers)
    variance = _label_variance(truth, volunteers)
    error = (labels - truth).sum(0) / np.sqrt(variance.sum(0))
    assert np.abs(error).max() < 5, pd.Series(error, COLUMNS).abs().nlargest(3)
    assert rmse(truth, labels) == pytest.approx(_expected_floor(truth, volunteers), rel=0.02)


def test_the_mean_and_the_variance_are_exact_for_a_likely_star():
    "With 16 volunteers and a likely star, nobody may be left to answer question 6: the formulas hold there too."
    fractions = mock.answer_probabilities(mock.draw_galaxy(np.random.default_rng(4)))
    fractions[:3] = [0.08, 0.07, 0.85]
    labels, n = crowds(fractions, 16, 40_000), np.array([16])
    truth = expected_labels(fractions[None], n)
    variance = _label_variance(truth, n)[0]
    error = (labels.mean(0) - truth[0]) / np.sqrt(np.maximum(variance, 1e-12) / len(labels))
    assert np.abs(error).max() < 5
    squares = (labels - truth[0]) ** 2
    error = (squares.mean(0) - variance) / np.maximum(squares.std(0) / np.sqrt(len(labels)), 1e-12)
    assert np.abs(error[truth[0] > 0.002]).max() < 5


def test_the_estimate_from_labels_alone_meets_the_floor():
    "f(1-f)/(N-1), the estimate that real labels need, against the exact expectation."
    fractions, volunteers = many_fractions(4000, seed=3)
    rng = np.random.default_rng(4)
    labels = labels_from_votes(vote(fractions, volunteers, rng))
    odd = np.array([column.startswith(("Class6", "Class8")) for column in COLUMNS])
    voters = np.where(odd, volunteers[:, None] * (1 - labels[:, 2:3]), volunteers[:, None])
    estimate = np.sqrt((labels * (1 - labels) / np.maximum(voters - 1, 1)).mean())
    expected = _expected_floor(expected_labels(fractions, volunteers), volunteers)
    assert estimate == pytest.approx(expected, rel=0.01)


def test_likeness_of_the_crowd():
    "Mean f(1-f) and the spread of the labels are those of Galaxy Zoo 2, and every column is populated."
    fractions, volunteers = many_fractions(3000, seed=5)
    rng = np.random.default_rng(6)
    labels = labels_from_votes(vote(fractions, volunteers, rng))
    assert 0.05 < (labels * (1 - labels)).mean() < 0.065
    assert 0.15 < np.sqrt(((labels - labels.mean(0)) ** 2).mean()) < 0.18
    assert (labels.mean(0) > 0.002).all() and (labels > 0.3).any(0).sum() >= 36
