"""The real sample: what it holds, and that crops, originals, benchmark file and test images take the package's way."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_untrained

from gzpaper.data import KaggleFolder, _label_digests, read_table, split, write_sample
from gzpaper.decoding import CROP, decode
from gzpaper.images import Images, pixel_digest
from gzpaper.paper import root
from gzpaper.predict import predict_images
from gzpaper.tree import COLUMNS, check_labels

PARTS = {"train": 5500, "validation": 1000, "test": 1000}


@pytest.fixture(scope="session")
def folder(real_folder) -> KaggleFolder:
    "The sample that shared figures are from; another folder of real galaxies will not do."
    kaggle = KaggleFolder(real_folder)
    if len(kaggle.images()) != sum(PARTS.values()) or not (real_folder / "original_424").is_dir():
        pytest.skip(f"{real_folder} is not the sample of 7,500 galaxies with some originals")
    return kaggle


@pytest.fixture(scope="session")
def published() -> pd.DataFrame:
    "The published list of the sample."
    if not (root() / "data/sample.csv").exists():
        pytest.skip("data/sample.csv is not there yet: `make publish PROFILE=sample` writes it")
    return pd.read_csv(root() / "data/sample.csv")


@pytest.fixture(scope="session")
def labels(folder) -> pd.DataFrame:
    "The sample's labels."
    return read_table(folder.labels_path)


@pytest.fixture(scope="session")
def originals(folder) -> Images:
    "The galaxies whose whole image is there."
    return Images(folder.path / "original_424")


@pytest.fixture(scope="session")
def crops(folder, originals) -> Images:
    "The same galaxies' central parts."
    return folder.images().select(originals.ids)


@pytest.fixture(scope="session")
def header(folder) -> list[str]:
    "The header of Kaggle's own submission file."
    return list(pd.read_csv(folder.path / "central_pixel_benchmark.zip", nrows=0).columns)


def digest_of(images: Images, i: int) -> str:
    "The digest of one image's pixels."
    return pixel_digest(decode(images.read(i), images.where(i)))


def listed(images: Images, rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    "Write a list in the form of data/sample.csv with the galaxies of some rows of labels."
    chosen = images.select(rows.GalaxyID)
    digests = [digest_of(chosen, i) for i in range(len(chosen))]
    table = pd.DataFrame({"GalaxyID": rows.GalaxyID, "part": "train", "pixels": digests,
                          "labels": _label_digests(rows[COLUMNS].to_numpy())})
    table[::-1].to_csv(path, index=False)
    return table


def test_labels_obey_the_tree(labels):
    assert len(labels) == sum(PARTS.values()) and check_labels(labels).empty


def test_images_and_labels_are_of_the_same_galaxies(folder, labels):
    np.testing.assert_array_equal(folder.images().ids, labels.GalaxyID)
    assert not folder.is_mock


def test_split(labels):
    part = split(labels.GalaxyID, PARTS["validation"], PARTS["test"])
    assert pd.Series(part).value_counts().to_dict() == PARTS
    np.testing.assert_array_equal(split(labels.GalaxyID[::-1], PARTS["validation"], PARTS["test"])[::-1], part)


def test_split_and_labels_are_the_published_ones(published, labels):
    np.testing.assert_array_equal(published.GalaxyID, labels.GalaxyID)
    np.testing.assert_array_equal(published.part, split(labels.GalaxyID, PARTS["validation"], PARTS["test"]))
    assert published.labels.tolist() == _label_digests(labels[COLUMNS].to_numpy())


def test_originals_and_crops_have_the_same_pixels(originals, crops):
    "Apart from the outermost two, which a JPEG decoder interpolates from what the crop has lost."
    assert len(originals) == 48
    for i in range(len(originals)):
        whole, cut = (decode(images.read(i), images.where(i)) for images in (originals, crops))
        assert whole.shape == cut.shape == (CROP, CROP, 3)
        np.testing.assert_array_equal(whole[2:-2, 2:-2], cut[2:-2, 2:-2])
        assert pixel_digest(whole) == pixel_digest(cut)


def test_pixel_digests_are_the_published_ones(published, crops):
    listed = published.set_index("GalaxyID").pixels.loc[crops.ids].tolist()
    assert listed == [digest_of(crops, i) for i in range(len(crops))]


def test_kaggles_benchmark_is_a_predictions_table(folder, header):
    table = read_table(folder.path / "central_pixel_benchmark.zip")
    assert table.shape == (79975, 38) and header == ["GalaxyID", *COLUMNS]
    assert len(table[COLUMNS].drop_duplicates()) == 6
    assert (table["Class11.6"] == 0).all(), "Kaggle's file has no answer there, so question 11 alone breaks the tree"
    assert set(check_labels(table.drop_duplicates(COLUMNS), tolerance=1e-3).question) == {11}


def test_test_images_make_a_submission(folder, header, weights, tmp_path, cli):
    "The challenge's test images to a file in the format of Kaggle's own."
    out = tmp_path / "submission.csv"
    assert cli("predict", folder.path / "images_test_rev1", "--weights", weights, "--rotations", 2, "--out", out).code == 0
    table = pd.read_csv(out)
    assert table.shape == (200, 38) and out.read_text().splitlines()[0].split(",") == header
    assert set(table.GalaxyID) <= set(read_table(folder.path / "central_pixel_benchmark.zip").GalaxyID)
    assert table[COLUMNS].to_numpy().min() >= 0 and table[COLUMNS].to_numpy().max() <= 1


def some_weights(tmp_path: Path) -> Path:
    "The smallest network that was trained on the sample, else an untrained one."
    trained = sorted((root() / "runs/sample/runs").glob("*/weights.safetensors"), key=lambda f: f.stat().st_size)
    return trained[0] if trained else write_untrained(tmp_path / "weights.safetensors", spread=0.5)


@pytest.mark.parametrize("rotations, tolerance", [(4, 1e-6), (8, 1e-3)], ids=["right angles", "default"])
def test_originals_and_crops_predict_the_same(rotations, tolerance, originals, crops, tmp_path):
    "Views at right angles do not reach the outermost pixels that differ; the corners of the others do."
    chosen, file = tmp_path / "crops", some_weights(tmp_path)
    chosen.mkdir()
    for i, name in enumerate(crops.names):
        (chosen / name).symlink_to(crops.where(i))
    whole, cut = (predict_images(file, place, rotations, progress=False) for place in (originals.path, chosen))
    assert whole.GalaxyID.tolist() == cut.GalaxyID.tolist()
    assert whole[COLUMNS].std().max() > 0.02, "the network gives every galaxy the same answers: this would show nothing"
    assert np.abs(whole[COLUMNS] - cut[COLUMNS]).to_numpy().max() < tolerance


def test_sample_round_trip(folder, labels, tmp_path):
    "A small list cuts its galaxies out of the folder, and then out of the result."
    images, rows = folder.images(), labels[::1500]
    table = listed(images, rows, tmp_path / "sample.csv")
    for source, out in ((folder.path, "once"), (tmp_path / "once", "twice")):
        assert write_sample(source, tmp_path / out, tmp_path / "sample.csv") == len(rows)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["once", "sample.csv", "twice"]
    again, relabelled, unlabelled = KaggleFolder(tmp_path / "twice").join()
    assert again.ids.tolist() == rows.GalaxyID.tolist() and not len(unlabelled)
    assert [again.read(i) for i in range(len(again))] == [images.read(i) for i in np.flatnonzero(np.isin(images.ids, again.ids))]
    assert _label_digests(relabelled[COLUMNS].to_numpy()) == table.labels.tolist()


def test_sample_from_originals(folder, originals, labels, tmp_path):
    "A list made from crops finds the same galaxies in a download of whole images."
    rows, download = labels[labels.GalaxyID.isin(originals.ids[:3])], tmp_path / "download"
    (download / "images_training_rev1").mkdir(parents=True)
    for i in range(3):
        shutil.copy(originals.where(i), download / "images_training_rev1")
    rows.to_csv(download / "training_solutions_rev1.csv", index=False)
    listed(folder.images(), rows, tmp_path / "sample.csv")
    assert write_sample(download, tmp_path / "out", tmp_path / "sample.csv") == 3
