"""Names are text, exactly, through every kind of table and back; and all that is in a folder is read, or named in one line."""

import io
import os
import shutil
import socket
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, assert_says
from PIL import Image

from gzpaper.catalogue import bad_path
from gzpaper.data import read_table
from gzpaper.decoding import KINDS
from gzpaper.images import Images, galaxy_ids
from gzpaper.predict import READABLE, vote_fractions, write_predictions
from gzpaper.scores import scored
from gzpaper.tree import InputError, predictions_table, printable, to_labels

FEW = ("--rotations", 1, "--no-flip", "--device", "cpu")
IMAGES, LABELS = "images_training_rev1", "training_solutions_rev1.csv"


def stamp(path: Path, seed: int = 0):
    "An image of a galaxy, whatever its name."
    y, x = np.mgrid[:240, :240] - 119.5
    light = 200 * np.exp(-np.hypot(x, (1 + seed) * y) / 20)
    kind = "PNG" if str(path).lower().endswith(".png") else "JPEG"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.fromarray(np.stack([light] * 3, -1).astype(np.uint8)).save(file, kind)
    with open(path, "wb") as out:
        out.write(file.getvalue())


def folder_of(path: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        stamp(path / name, seed)
    return path


def table_of(*ids) -> pd.DataFrame:
    "A table of labels that obeys the tree."
    return predictions_table(list(ids), to_labels(vote_fractions(np.random.default_rng(0).gamma(0.5, size=(len(ids), 37)))).round(6))


@pytest.fixture
def predict(weights, tmp_path, cli):
    "Predict a folder: what the command says."
    def run(images: Path, *arguments, out: str = "p.csv"):
        return cli("predict", images, "--weights", weights, *FEW, "--out", tmp_path / out, *arguments)

    return run


NAMES = {  # names that lose something when they are taken for numbers, for no value, or for formulas
    "zeros": ["0123", "123"],
    "64 bits without a sign": ["11257041232234719232", "299489677444933635"],
    "the first too large": [str(2**63), str(2**63 - 1)],
    "21 digits": ["112570412322347192321", "112570412322347192322"],
    "exponents": ["1e5", "100000", "2E3"],
    "no values": ["NA", "nan", "NULL", "None", "N_A", "inf", "null"],
    "truth": ["TRUE", "False", "true"],
    "dates and hexadecimals": ["2014-04-01", "0x10", "1_000", "1,000", "1.0", "1"],
    "formulas": ["=1+1", "+1", "-1", "@SUM(A1)", "'=1", "''x", "'"],
    "separators": ['a,b', 'a;b', 'a"b', " a", "a  b", "#a"],
    "digits of other scripts": ["٣٤", "34"],
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", NAMES)
def test_names_come_back_from_a_table(kind, suffix, tmp_path):
    table = table_of(*NAMES[kind])
    write_predictions(table, tmp_path / f"t{suffix}")
    found = read_table(tmp_path / f"t{suffix}", complete=True)
    assert found.GalaxyID.tolist() == sorted(NAMES[kind])
    values = table.assign(GalaxyID=NAMES[kind]).set_index("GalaxyID").loc[found.GalaxyID].to_numpy()
    np.testing.assert_allclose(found.iloc[:, 1:].to_numpy(), values, atol=1e-6)


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_images_are_those_of_the_tables(kind, predict, tmp_path, weights, cli):
    "In predictions and catalogues of all kinds, which evaluation and submission take as they are."
    images, names = folder_of(tmp_path / "images", *(f"{name}.jpg" for name in NAMES[kind])), sorted(NAMES[kind])
    assert predict(images, "--catalogue", tmp_path / "c.csv").code == 0
    assert predict(images, "--catalogue", tmp_path / "c.parquet", out="p.parquet").code == 0
    plain = {name: name.replace("'", "''", 1) if name.startswith("'=") else name for name in names}
    plain |= {name: f"'{name}" for name in names if name[0] in "=+-@"}
    for file in ("p.csv", "c.csv"):
        written = pd.read_csv(tmp_path / file, dtype={"GalaxyID": str}, keep_default_na=False).GalaxyID.tolist()
        assert written == list(plain.values()) and not any(cell[0] in "=+-@" for cell in written)
    for file in ("p.parquet", "c.parquet"):
        assert pd.read_parquet(tmp_path / file).GalaxyID.tolist() == names
    for file in ("p.csv", "p.parquet"):
        assert read_table(tmp_path / file, complete=True).GalaxyID.tolist() == names
    write_predictions(table_of(*NAMES[kind]), tmp_path / "labels.csv")
    _, (one, other) = scored(tmp_path / "labels.csv", tmp_path / "p.csv", tmp_path / "p.parquet")
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert cli("evaluate", tmp_path / "p.csv", tmp_path / "labels.csv").code == 0
    assert cli("submission", tmp_path / "p.csv", "--like", tmp_path / "p.csv").code == 0


@pytest.mark.parametrize("kind", [kind for kind in NAMES if "scripts" not in kind])
def test_names_in_fits(kind, predict, tmp_path):
    astropy = pytest.importorskip("astropy.table")
    images = folder_of(tmp_path / "images", *(f"{name}.jpg" for name in NAMES[kind]))
    assert predict(images, "--catalogue", tmp_path / "c.fits").code == 0
    assert astropy.Table.read(tmp_path / "c.fits")["GalaxyID"].tolist() == sorted(NAMES[kind])


def test_a_name_that_fits_would_cut(predict, tmp_path):
    images = folder_of(tmp_path / "images", "a .jpg", "a.jpg")
    predict(images, "--catalogue", tmp_path / "c.fits").refused("a .jpg", "trailing blanks", "rename")


def test_whole_numbers_stay_numbers(predict, tmp_path):
    assert galaxy_ids(["0", "7", str(2**63 - 1)]).dtype == np.int64
    assert predict(folder_of(tmp_path / "images", "10.jpg", "9.jpg"), out="p.parquet").code == 0
    found = pd.read_parquet(tmp_path / "p.parquet").GalaxyID
    assert found.dtype == np.int64 and found.tolist() == [9, 10]


def test_numbers_and_text_are_compared(tmp_path, cli):
    "Labels with a galaxy 0123 beside whole numbers, predictions of the whole numbers alone."
    table_of("0123", "123", "45").to_csv(tmp_path / "labels.csv", index=False)
    table_of("123", "45").astype({"GalaxyID": int}).to_parquet(tmp_path / "p.parquet")
    cli("evaluate", tmp_path / "p.parquet", tmp_path / "labels.csv").refused("lacks GalaxyID 0123", "1 missing")
    assert "on 2 galaxies" in cli("evaluate", tmp_path / "p.parquet", tmp_path / "labels.csv", "--subset").out
    cli("submission", tmp_path / "labels.csv", "--like", tmp_path / "labels.csv")
    write_predictions(table_of("123", "45"), tmp_path / "mine.csv")
    cli("submission", tmp_path / "mine.csv", "--like", tmp_path / "labels.csv").refused("lacks GalaxyID 0123")


PARQUET_IDS = {  # GalaxyIDs as other programs keep them, and what they are read as
    "19 digits as text": (["1237648720693755918", "1237648720693755919"], [1237648720693755918, 1237648720693755919]),
    "unsigned": (np.array([2**63 + 1, 7], np.uint64), ["7", str(2**63 + 1)]),
    "decimals": ([Decimal(2**64), Decimal(7)], [str(2**64), "7"]),
    "small decimals": ([Decimal("8.00"), Decimal("7.00")], [7, 8]),
    "categories": (pd.Categorical(["012", "7"]), ["012", "7"]),
    "nullable": (pd.array([8, 7], "Int64"), [7, 8]),
    "32 bits": (np.array([8, 7], np.int32), [7, 8]),
}


@pytest.mark.parametrize("kind", PARQUET_IDS)
def test_ids_as_other_programs_keep_them(kind, tmp_path, cli):
    ids, expected = PARQUET_IDS[kind]
    table_of(1, 2).assign(GalaxyID=ids).to_parquet(tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet").GalaxyID
    assert found.tolist() == sorted(expected) and (found.dtype == np.int64) == isinstance(expected[0], int)
    assert cli("evaluate", tmp_path / "t.parquet", tmp_path / "t.parquet").code == 0


NO_IDS = {"floats": [1.237648720693756e18, 7.0], "nothing": ["7", None], "truth": [True, False],
          "nothing of 8": pd.array([8, None], "Int64")}


@pytest.mark.parametrize("kind", NO_IDS)
def test_what_is_no_id(kind, tmp_path, cli):
    table_of(1, 2).assign(GalaxyID=NO_IDS[kind]).to_parquet(tmp_path / "t.parquet")
    cli("evaluate", tmp_path / "t.parquet", tmp_path / "t.parquet").refused("t.parquet, row", "GalaxyID", "correct or remove")


def test_a_row_without_an_id(tmp_path, cli):
    table_of("7", "").to_csv(tmp_path / "t.csv", index=False)
    cli("evaluate", tmp_path / "t.csv", tmp_path / "t.csv").refused("t.csv, row 2", "correct or remove")


NUMBERS = {"text": str, "decimals": lambda value: Decimal(repr(value)), "32 bits": np.float32}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_that_are_written_as_text(kind, tmp_path):
    table = table_of(1, 2, 3)
    changed = table.assign(**{column: table[column].map(NUMBERS[kind]) for column in ("Class1.1", "Class7.2")})
    changed.to_parquet(tmp_path / "t.parquet")
    np.testing.assert_allclose(read_table(tmp_path / "t.parquet").to_numpy(float), table.to_numpy(float), atol=1e-6)


@pytest.mark.parametrize("value", ["many", "0,5", "TRUE", ""])
def test_text_that_is_no_number(value, tmp_path, cli):
    table = table_of(1, 2, 3).astype({"Class7.2": str})
    table.loc[1, "Class7.2"] = value
    table.to_parquet(tmp_path / "t.parquet")
    cli("evaluate", tmp_path / "t.parquet", tmp_path / "t.parquet").refused("GalaxyID 2", "Class7.2", f"'{value}' is not a number")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_truth_is_no_number(suffix, tmp_path, cli):
    table = table_of(1, 2).assign(**{"Class7.2": [True, False]})
    getattr(table, f"to_{suffix}")(tmp_path / f"t.{suffix}", index=False)
    cli("evaluate", tmp_path / f"t.{suffix}", tmp_path / f"t.{suffix}").refused("GalaxyID 1", "Class7.2", "'True' is not a number")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_header_alone(suffix, tmp_path, cli):
    table = table_of(1, 2)
    getattr(table[:0], f"to_{suffix}")(tmp_path / f"t.{suffix}", index=False)
    table.to_csv(tmp_path / "ok.csv", index=False)
    for pair in ((f"t.{suffix}", "ok.csv"), ("ok.csv", f"t.{suffix}")):
        cli("evaluate", *(tmp_path / name for name in pair)).refused(f"t.{suffix} has no rows")
    cli("submission", tmp_path / "ok.csv", "--like", tmp_path / "t.csv" if suffix == "csv" else tmp_path / "none.csv").refused()


@pytest.mark.parametrize("more", ["", "0.5"])
def test_rows_that_are_longer_than_the_header(more, tmp_path, cli):
    "A value too many, and be it empty, would shift all columns."
    head, *rows = table_of(1, 2).to_csv(index=False).splitlines()
    (tmp_path / "t.csv").write_text("\n".join([head, *(f"{row},{more}" for row in rows)]))
    cli("evaluate", tmp_path / "t.csv", tmp_path / "t.csv").refused("t.csv", "more cells than its header")


def test_a_column_twice(tmp_path, cli):
    head, *rows = table_of(1, 2).to_csv(index=False).splitlines()
    (tmp_path / "t.csv").write_text("\n".join([f"{head},Class1.1", *(f"{row},0.5" for row in rows)]))
    cli("evaluate", tmp_path / "t.csv", tmp_path / "t.csv").refused("column Class1.1 twice", "remove one")


def mac_zip(path: Path, **files: bytes) -> Path:
    "A zip as macOS makes it."
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
            archive.writestr("__MACOSX/" + "/".join([*name.split("/")[:-1], f"._{name.split('/')[-1]}"]), b"\0\5\x16\7")
        archive.writestr(".DS_Store", b"Bud1")
    return path


@pytest.mark.parametrize("folder", ["", "training_solutions_rev1/"])
def test_labels_zipped_by_a_mac(folder, tmp_path, cli):
    table = table_of(1, 2)
    labels = mac_zip(tmp_path / "labels.zip", **{f"{folder}{LABELS}": table.to_csv(index=False).encode()})
    np.testing.assert_allclose(read_table(labels).to_numpy(float), table.to_numpy(float))
    assert cli("evaluate", labels, labels).code == 0 and cli("submission", labels, "--like", labels).code == 0


def test_a_zip_of_two_tables(tmp_path, cli):
    mac_zip(tmp_path / "t.zip", **{"a.csv": b"1", "b.csv": b"2"})
    cli("evaluate", tmp_path / "t.zip", tmp_path / "t.zip").refused("t.zip", "2 tables", "a.csv, b.csv", "one CSV file")


def test_a_table_that_is_a_pipe(tmp_path, cli):
    os.mkfifo(tmp_path / "t.csv")
    cli("evaluate", tmp_path / "t.csv", tmp_path / "t.csv").refused("t.csv", "is not a file")


def test_an_image_in_each_subfolder(predict, tmp_path):
    "As from a zip of the same."
    images = folder_of(tmp_path / "images", "1.jpg", "a/2.jpg", "b/c/3.JPG", "images/4.jpeg")
    assert predict(images).code == 0
    shutil.make_archive(tmp_path / "images", "zip", tmp_path, "images")
    assert predict(tmp_path / "images.zip", out="z.csv").code == 0
    assert read_table(tmp_path / "p.csv").GalaxyID.tolist() == [1, 2, 3, 4]
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "z.csv").read_bytes()


@pytest.mark.parametrize("command", ["check", "train"])
def test_images_one_folder_deeper(command, damaged, cli):
    "As `unzip -d` leaves them."
    (damaged / IMAGES).rename(damaged / "inner")
    (damaged / IMAGES).mkdir()
    (damaged / "inner").rename(damaged / IMAGES / IMAGES)
    done = cli(*(["data", "check", damaged] if command == "check" else ["train", damaged, "--out", damaged.parent / "run", *TINY]))
    assert done.code == 0, done.err


@pytest.mark.parametrize("zipped", [False, True])
def test_backslashes(zipped, predict, tmp_path):
    "As old programs on Windows write zips, and some others unpack them."
    folder = folder_of(tmp_path / "images", "images\\100008.jpg", "images\\sub\\100023.jpg")
    if zipped:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
            archive.writestr("images\\", b"")
        folder = tmp_path / "images.zip"
    done = predict(folder)
    assert done.code == 0 and "skipped in" not in done.err
    assert read_table(tmp_path / "p.csv").GalaxyID.tolist() == [100008, 100023]


@pytest.mark.parametrize("end", [f for end in KINDS for f in (end, end.upper())])
def test_every_end(end, tmp_path):
    "The names of images, whatever end they have; what is inside is read later."
    (tmp_path / "images/sub").mkdir(parents=True)
    for name in ("0123", "J1205.5+01", "sub/NGC.1300"):
        (tmp_path / f"images/{name}{end}").write_bytes(b"")
    images = Images(tmp_path / "images", READABLE)
    assert images.ids.tolist() == ["0123", "J1205.5+01", "NGC.1300"] and not images.others


def test_twins(predict, tmp_path):
    "Nobody knows which is meant, so with --skip-bad neither is taken."
    images = folder_of(tmp_path / "images", "a/7.jpg", "b/7.png", "8.jpg")
    predict(images).refused(images, "two images of GalaxyID 7", "a/7.jpg", "b/7.png", "remove one", "--skip-bad")
    done = predict(images, "--skip-bad")
    assert done.code == 0 and "1 galaxies" in done.out and "2 images could not be used" in done.out
    assert pd.read_csv(bad_path(tmp_path / "p.csv")).name.tolist() == ["a/7.jpg", "b/7.png"]


def test_one_name_twice_in_a_zip(predict, tmp_path):
    folder_of(tmp_path, "7.jpg")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.write(tmp_path / "7.jpg", "7.jpg")
        archive.write(tmp_path / "7.jpg", "7.jpg")
    predict(tmp_path / "images.zip").refused("two images of GalaxyID 7", "remove one")


def broken_link(folder: Path):
    (folder / "x.jpg").symlink_to("nowhere.jpg")


def circle(folder: Path):
    (folder / "x.jpg").symlink_to("x.jpg")


def pipe(folder: Path):
    os.mkfifo(folder / "x.jpg")


def device(folder: Path):
    (folder / "x.jpg").symlink_to("/dev/zero")


def bind_socket(folder: Path):
    before = os.getcwd()
    os.chdir(folder)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("x.jpg")
    os.chdir(before)


STRANGE = {  # what lies in a folder beside an image, and what the message says
    "a broken link": (broken_link, ["x.jpg", "link", "remove"]),
    "a link to itself": (circle, ["x.jpg", "link", "remove"]),
    "a broken link to a folder": (lambda f: (f / "x").symlink_to("nowhere"), ["images/x", "link", "remove"]),
    "links in a circle": (lambda f: (f / "x").symlink_to("."), ["images/x", "read already", "remove the link"]),
    "a pipe": (pipe, ["x.jpg", "pipe", "remove"]),
    "a device": (device, ["x.jpg", "device", "remove"]),
    "a socket": (bind_socket, ["x.jpg", "not a file", "remove"]),
    "a folder": (lambda f: (f / "x.jpg").mkdir(), ["x.jpg", "is a folder", "another name"]),
    "no UTF-8": (lambda f: stamp(f / os.fsdecode(b"x\xe9.jpg")), ["\\udce9.jpg", "no UTF-8", "rename"]),
    "no UTF-8 above it": (lambda f: stamp(f / os.fsdecode(b"x\xe9/1.jpg")), ["\\udce9/1.jpg", "no UTF-8", "rename"]),
    "a terminal's escape": (lambda f: stamp(f / "x\x1b[31m\x1b]0;x\x07.jpg"), ["x\\x1b[31m", "control character", "rename"]),
    "what is not seen": (lambda f: stamp(f / "x\u200by.jpg"), ["x\\u200by.jpg", "control character", "rename"]),
    "a line's end": (lambda f: stamp(f / "x\ny.jpg"), ["x", "y.jpg", "control character", "rename"]),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_things(kind, predict, tmp_path, monkeypatch, cli):
    "Named in one line before anything is predicted; with --skip-bad they are listed, and the rest is predicted."
    images, (make, words) = folder_of(tmp_path / "images", "0.jpg"), STRANGE[kind]
    make(images)
    with monkeypatch.context() as patch:
        patch.setattr("gzpaper.catalogue.Ensemble", None)  # nothing gets so far
        refused = predict(images)
    refused.refused(*words, "--skip-bad")
    assert not any(ord(c) < 32 for c in refused.err.rstrip("\n"))
    done = predict(images, "--skip-bad")
    assert done.code == 0 and "1 galaxies" in done.out and "1 images could not be used" in done.out, done.err
    assert read_table(tmp_path / "p.csv").GalaxyID.tolist() == [0]
    [listed] = pd.read_csv(bad_path(tmp_path / "p.csv")).reason
    assert not any(ord(c) < 32 for c in listed)


@pytest.mark.parametrize("kind", ["a broken link", "a pipe", "no UTF-8"])
@pytest.mark.parametrize("command", ["check", "train"])
def test_strange_things_among_labelled_galaxies(kind, command, damaged, cli):
    make, words = STRANGE[kind]
    make(damaged / IMAGES)
    done = cli(*(["data", "check", damaged] if command == "check" else ["train", damaged, "--out", damaged.parent / "run", *TINY]))
    done.refused(*words)


def test_a_zip_whose_paths_begin_with_a_point(predict, tmp_path):
    folder_of(tmp_path, "7.jpg")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("./images/7.jpg", (tmp_path / "7.jpg").read_bytes())
        archive.writestr("../8.jpg", (tmp_path / "7.jpg").read_bytes())
    assert predict(tmp_path / "images.zip").code == 0
    assert read_table(tmp_path / "p.csv").GalaxyID.tolist() == [7, 8]


def test_images_that_are_a_pipe(predict, tmp_path):
    os.mkfifo(tmp_path / "images.zip")
    predict(tmp_path / "images.zip").refused("images.zip", "neither a folder nor a zip")


def test_a_link_to_an_image_and_to_a_folder(predict, tmp_path):
    folder_of(tmp_path, "elsewhere/1.jpg", "one.jpg")
    images = folder_of(tmp_path / "images", "0.jpg")
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "2.jpg").symlink_to(tmp_path / "one.jpg")
    assert predict(images).code == 0
    assert read_table(tmp_path / "p.csv").GalaxyID.tolist() == [0, 1, 2]


@pytest.mark.parametrize("zipped", [False, True])
def test_what_is_left_out_is_counted(zipped, predict, tmp_path):
    "In one line; what operating systems leave is no one's data."
    images = folder_of(tmp_path / "images", "0.jpg", "__MACOSX/._0.jpg", "._0.jpg")
    for name in ("notes.txt", "1.tiff", "sub/2.gif", ".3.jpg", "Thumbs.db", ".DS_Store"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_text("no image")
    if zipped:
        images = Path(shutil.make_archive(tmp_path / "images", "zip", tmp_path, "images"))
    done = predict(images)
    assert done.code == 0, done.err
    [line] = [line for line in done.lines if "skipped in" in line]
    assert_says(line, images, "4 files", "such as")


def test_what_is_left_out_of_a_training(damaged, cli):
    stamp(damaged / IMAGES / "17.png")
    for command in (["data", "check", damaged], ["train", damaged, "--out", damaged.parent / "run", *TINY]):
        done = cli(*command)
        assert done.code == 0 and [line for line in done.lines if "skipped in" in line and "17.png" in line and "1 file," in line], done.err


OUTPUTS = {  # --out and --catalogue that would meet, and what the message says
    "the list of bad images": ("p.csv", "p.bad.csv", ["p.bad.csv", "unusable images", "name another"]),
    "the list, by another way": ("p.parquet", "sub/../p.bad.csv", ["p.bad.csv", "name another"]),
    "in the parts": ("p.csv", "p.csv.parts/c.csv", ["p.csv.parts", "name another"]),
    "one file": ("p.csv", "p.csv", ["named twice"]),
    "among the images": ("p.csv", "images/sub/c.fits", ["c.fits", "among the images", "name another place"]),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_tables_that_would_meet(kind, overwrite, predict, tmp_path):
    out, catalogue, words = OUTPUTS[kind]
    images = folder_of(tmp_path / "images", "0123.jpg")
    predict(images, "--catalogue", tmp_path / catalogue, *["--overwrite"] * overwrite, out=out).refused(*words)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".jpg"]


def test_a_file_of_others_is_not_removed(predict, tmp_path):
    "Where the list of bad images and the parts would be."
    images = folder_of(tmp_path / "images", "0.jpg")
    (tmp_path / "p.bad.csv").write_text("GalaxyID,note\n1,mine\n")
    predict(images).refused("p.bad.csv", "move it away")
    assert (tmp_path / "p.bad.csv").read_text() == "GalaxyID,note\n1,mine\n"
    (tmp_path / "q.csv.parts").write_text("mine")
    predict(images, out="q.csv").refused("q.csv.parts", "move it away")
    assert (tmp_path / "q.csv.parts").read_text() == "mine"


def test_messages_hold_no_control_characters(tmp_path, cli):
    assert printable("a\x1b[31m\x9b1m\u2028\udce9b") == "a\\x1b[31m\\x9b1m\\u2028\\udce9b"
    table_of("a\x1b[31m", "b").assign(**{"Class1.1": ["many", "0.5"]}).to_csv(tmp_path / "t.csv", index=False)
    refused = cli("evaluate", tmp_path / "t.csv", tmp_path / "t.csv")
    refused.refused("GalaxyID 'a\\x1b[31m'", "text of one line")
    assert "\x1b" not in refused.err


def test_training_takes_numbers_alone(damaged, cli):
    labels = pd.read_csv(damaged / LABELS, dtype={"GalaxyID": str})
    first = labels.GalaxyID[0]
    (damaged / IMAGES / f"{first}.jpg").rename(damaged / IMAGES / f"0{first}.jpg")
    labels.replace({"GalaxyID": {first: f"0{first}"}}).to_csv(damaged / LABELS, index=False)
    cli("train", damaged, "--out", damaged.parent / "run", *TINY).refused(LABELS, f"'0{first}' is not a whole number", "correct or remove")


def test_a_float_is_no_galaxy(tmp_path):
    with pytest.raises(InputError, match="row 1"):
        table_of(1.0, 2.0).to_parquet(tmp_path / "t.parquet")
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["x" * 300, "1\0x", "1\n"], ids=["long", "NUL", "a line"])
def test_what_is_no_name(name, tmp_path, cli):
    table_of(name, "b").to_csv(tmp_path / "t.csv", index=False)
    refused = cli("evaluate", tmp_path / "t.csv", tmp_path / "t.csv")
    refused.refused("t.csv, row 1", "text of one line, up to 255 characters")
    assert len(refused.err) < 1200


def test_galaxies_that_are_the_index_of_a_table(tmp_path):
    table_of(3, 1, 9).set_index("GalaxyID").to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").GalaxyID.tolist() == [1, 3, 9]


@pytest.mark.parametrize("kind", ["datetime64[s]", "timedelta64[s]"])
def test_times_are_no_numbers(kind, tmp_path):
    table_of(1, 2).assign(**{"Class1.1": np.zeros(2, kind)}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="GalaxyID 1, column Class1.1: .* is not a number"):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_table_in_another_encoding(encoding, tmp_path):
    (tmp_path / "t.csv").write_text(table_of("é", "b").to_csv(index=False), encoding=encoding)
    with pytest.raises(InputError, match="not a table in UTF-8: save it as a CSV file in UTF-8"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("name, told", [("éa.jpg".encode(), ""), ("éa.jpg".encode("latin1"), "no UTF-8")])
def test_names_in_a_zip_that_does_not_say_how_they_are_written(name, told, tmp_path):
    "As Macs write them: UTF-8 without a word of it."
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("@" * len(name), b"")
    path.write_bytes(path.read_bytes().replace(b"@" * len(name), name))
    if told:
        with pytest.raises(InputError, match=f"images.zip holds names that are {told}: unpack it"):
            Images(path)
    else:
        assert Images(path).ids.tolist() == ["éa"]
