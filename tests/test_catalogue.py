"""The catalogue: what its columns say follows from the labels, in all its formats."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from gzpaper.catalogue import _CATALOGUES, catalogue, catalogue_columns, write_catalogue
from gzpaper.predict import vote_fractions
from gzpaper.tree import COLUMNS, QUESTIONS, predictions_table, to_conditional, to_labels

N = 200


@pytest.fixture(scope="module")
def predictions() -> pd.DataFrame:
    "Labels that obey the tree for the first half, sigmoid-like ones for the second; one galaxy that nothing is known of."
    rng = np.random.default_rng(0)
    obeying = to_labels(vote_fractions(rng.gamma(0.5, size=(N // 2, 37))))
    values = np.concatenate([obeying, rng.uniform(size=(N // 2, 37)) ** 3])
    values[-1] = 0
    return predictions_table(np.arange(1000, 1000 + N), values)


@pytest.fixture(scope="module")
def table(predictions) -> pd.DataFrame:
    return catalogue(predictions, np.full((N, 37), 0.02))


def fractions_of(table: pd.DataFrame, question) -> np.ndarray:
    return np.stack([np.asarray(table[f"{name}_fraction"], float) for name in question.gz2], axis=1)


def start(question) -> str:
    return f"t{question.number:02}_{question.name}"


def read(path):
    "A catalogue from disk, as those who are given it would read it."
    if path.suffix == ".fits":
        return pytest.importorskip("astropy.table").Table.read(path)
    return pd.read_csv(path, keep_default_na=False) if path.suffix == ".csv" else pd.read_parquet(path)


def test_names_are_those_of_galaxy_zoo_2():
    columns = catalogue_columns()
    assert len(columns) == 1 + 2 * 37 + 2 * 11
    for name in ("t01_smooth_or_features_a01_smooth_fraction", "t08_odd_feature_a38_dust_lane_fraction",
                 "t11_arms_number_a36_more_than_4_fraction", "t05_bulge_prominence_asked_fraction", "t02_edgeon_leading_answer"):
        assert name in columns
    assert all(len(name) <= 68 for name in columns), "longer names do not fit into a FITS card"


@pytest.mark.parametrize("suffix", _CATALOGUES)
def test_fractions_sum_to_1_in_every_format(suffix, table, tmp_path):
    if suffix == ".fits":
        pytest.importorskip("astropy")
    write_catalogue(table, tmp_path / f"c{suffix}", rotations=8)
    found = read(tmp_path / f"c{suffix}")
    assert list(found.columns) == list(catalogue_columns()) and len(found) == N
    for question in QUESTIONS:
        values = fractions_of(found, question)
        assert values.min() >= 0
        np.testing.assert_allclose(values.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(values, fractions_of(table, question), atol=1e-6)


def test_fractions_are_the_trees_own_where_labels_obey_it(predictions, table):
    whole = to_conditional(predictions[COLUMNS].to_numpy())[: N // 2]
    for question in QUESTIONS:
        np.testing.assert_allclose(fractions_of(table, question)[: N // 2], whole[:, question.slice], atol=1e-6)


def test_asked_and_leading_answers(predictions, table):
    "Question 9 is asked of those who say features and then edge-on."
    by_hand = fractions_of(table, QUESTIONS[0])[:, 1] * fractions_of(table, QUESTIONS[1])[:, 0]
    np.testing.assert_allclose(table.t09_bulge_shape_asked_fraction, by_hand, atol=1e-6)
    np.testing.assert_allclose(table.t06_odd_asked_fraction, 1 - fractions_of(table, QUESTIONS[0])[:, 2], atol=1e-6)
    seen = 0
    for question in QUESTIONS:
        leading, reached = table[f"{start(question)}_leading_answer"], table[f"{start(question)}_asked_fraction"] >= 0.5
        best = np.array(question.codes)[fractions_of(table, question).argmax(1)]
        assert (leading == np.where(reached, best, "")).all()
        seen += (leading == "").any() and (leading != "").any()
    assert seen >= 5


def test_fits_has_units_and_descriptions(table, tmp_path):
    pytest.importorskip("astropy")
    from astropy.io import fits

    write_catalogue(table, tmp_path / "c.fits", weights=["abc"], rotations=8)
    found = read(tmp_path / "c.fits")
    for i, (name, description) in enumerate(catalogue_columns().items(), 1):
        assert found[name].description == description
        with fits.open(tmp_path / "c.fits") as file:
            assert file[1].header[f"TCOMM{i}"] == description
            assert ("TUNIT" + str(i) in file[1].header) == name.endswith(("_fraction", "_spread"))
    assert "rotations 8" in " ".join(found.meta["comments"])


def test_memory_while_fits_is_written(table, tmp_path):
    "Of copies of the table, only those that astropy makes."
    pytest.importorskip("astropy")
    many = pd.concat([table] * 100, ignore_index=True)
    write_catalogue(table, tmp_path / "few.fits")  # what is imported does not count
    tracemalloc.start()
    write_catalogue(many, tmp_path / "c.fits")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.2 * (tmp_path / "c.fits").stat().st_size


def test_parquet_has_descriptions(table, tmp_path):
    from pyarrow import parquet

    write_catalogue(table, tmp_path / "c.parquet")
    for field in parquet.read_schema(tmp_path / "c.parquet"):
        assert field.metadata[b"description"].decode() == catalogue_columns()[field.name]


def test_one_command_from_images_to_catalogue(mock_folder, weights, tmp_path, cli):
    pytest.importorskip("astropy")
    done = cli("predict", mock_folder / "images_test_rev1", "--weights", weights, "--rotations", 2, "--out", tmp_path / "p.parquet",
               "--catalogue", tmp_path / "c.fits")
    assert done.code == 0 and "c.fits" in done.out, done.err
    found, labels = read(tmp_path / "c.fits"), pd.read_parquet(tmp_path / "p.parquet")
    assert found["GalaxyID"].tolist() == labels.GalaxyID.tolist() and len(found) == 2
    np.testing.assert_allclose(fractions_of(found, QUESTIONS[0]), vote_fractions(labels[COLUMNS].to_numpy())[:, :3], atol=1e-6)
    assert 0 < found["t01_smooth_or_features_a01_smooth_spread"].max() < 0.5
