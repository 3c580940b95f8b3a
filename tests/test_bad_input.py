"""Bad input: one line that names the file, row or value and the remedy, exit code 1, and nothing written is lost."""

import io
import json
import pickle
import re
import resource
import shutil
import zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DEEP, TINY, assert_says, assert_whole
from PIL import Image
from safetensors.torch import load_file, save_file

import gzpaper.train
from gzpaper.chain import plan, read_profile
from gzpaper.data import KaggleFolder, load_galaxies, read_table, sample_table
from gzpaper.decoding import decode
from gzpaper.images import PixelStore, pixel_store
from gzpaper.models import build_model
from gzpaper.scores import central_pixel
from gzpaper.spec import Spec
from gzpaper.train import fit
from gzpaper.tree import InputError, predictions_table
from gzpaper.weights import read_header

ROOT = Path(__file__).parent.parent
IMAGES, LABELS = "images_training_rev1", "training_solutions_rev1.csv"
COMMANDS = {
    "check": lambda folder, weights: ["data", "check", folder],
    "train": lambda folder, weights: ["train", folder, "--out", folder.parent / "run", *TINY],
    "predict": lambda folder, weights: ["predict", folder / IMAGES, "--weights", weights, "--out", folder.parent / "table.csv"],
}


def contents(folder: Path) -> dict[str, bytes]:
    "Every file below a folder, but for locks."
    files = (f for f in sorted(Path(folder).rglob("*")) if f.is_file() and f.suffix != ".lock")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def fifth_image(folder: Path) -> Path:
    "The image that the tests damage."
    return sorted((folder / IMAGES).iterdir())[5]


def encode(size=(424, 424), mode="RGB", kind="JPEG") -> bytes:
    "An image file of noise."
    file, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def claim_a_huge_size(file: Path):
    "A JPEG whose header claims 65,500 px a side: a decompression bomb."
    data = file.read_bytes()
    at = data.index(b"\xff\xc0") + 5
    file.write_bytes(data[:at] + (65500).to_bytes(2, "big") * 2 + data[at + 4 :])


IMAGE_DAMAGE = {  # what is done to one image, and what the message says apart from the image's name
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]), ["is damaged", "fetch it again"]),
    "header only": (lambda f: f.write_bytes(f.read_bytes()[:100]), ["fetch it again"]),
    "empty": (lambda f: f.write_bytes(b""), ["is not an image", "fetch it again"]),
    "text": (lambda f: f.write_text("GalaxyID,Class1.1\n"), ["is not an image", "fetch it again"]),
    "PNG": (lambda f: f.write_bytes(encode(kind="PNG")), ["PNG image, not JPEG", "convert"]),
    "RGBA PNG": (lambda f: f.write_bytes(encode(mode="RGBA", kind="PNG")), ["PNG image, not JPEG", "convert"]),
    "grey": (lambda f: f.write_bytes(encode(mode="L")), ["colours L", "convert"]),
    "CMYK": (lambda f: f.write_bytes(encode(mode="CMYK")), ["colours CMYK", "convert"]),
    "small": (lambda f: f.write_bytes(encode((231, 424))), ["231x424", "232", "cut a larger stamp"]),
    "bomb": (claim_a_huge_size, ["fetch it again"]),
    "directory": (lambda f: (f.unlink(), f.mkdir()), ["fetch it again"]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", IMAGE_DAMAGE)
def test_image(damage, command, damaged, weights, cli):
    image = fifth_image(damaged)
    act, words = IMAGE_DAMAGE[damage]
    act(image)
    cli(*COMMANDS[command](damaged, weights)).refused(image, *words)
    assert_whole(damaged.parent)


def test_no_bytes_crash_the_decoder(damaged):
    "200 images with 8 bytes changed: pixels or `InputError`, nothing else."
    data, rng = fifth_image(damaged).read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(data)
        for at in rng.integers(0, min(len(data), 700), 8):
            changed[at] = rng.integers(256)
        try:
            assert decode(bytes(changed), "changed.jpg").shape == (232, 232, 3)
        except InputError as error:
            assert "changed.jpg" in str(error)


def zipped(folder: Path, edit=lambda data: data):
    "A compressed zip of the images in place of their folder, its bytes edited."
    file = folder / f"{IMAGES}.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for image in sorted((folder / IMAGES).iterdir()):
            archive.write(image, f"{IMAGES}/{image.name}")
    shutil.rmtree(folder / IMAGES)
    file.write_bytes(edit(file.read_bytes()))


def break_stream(data: bytes) -> bytes:
    "A zip whose first file starts with a block of a type that deflate does not have."
    at = 30 + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
    return data[:at] + b"\x07" + data[at + 1 :]


def set_entries(data: bytes, flags: int, method: int) -> bytes:
    "A zip whose directory gives these flags and this compression for every file."
    return re.sub(rb"(?s)(PK\x01\x02....)....", lambda m: m[1] + bytes([flags, 0, method, 0]), data)


def copy_twice(folder: Path):
    "Two images of GalaxyID 1."
    for name in ("1.jpg", "1.jpeg"):
        shutil.copy(fifth_image(folder), folder / IMAGES / name)


ZIP_DAMAGE = {  # what is done to a zip of images, and what the message says apart from the zip's name
    "cut off": (lambda d: zipped(d, lambda b: b[: len(b) // 2]), ["download the zip again"]),
    "with a gap": (lambda d: zipped(d, lambda b: b[:2000] + b[5000:]), ["again"]),
    "wrong bytes": (lambda d: zipped(d, lambda b: b[:2000] + bytes(500) + b[2500:]), ["fetch it again"]),
    "wrong stream": (lambda d: zipped(d, break_stream), ["fetch it again"]),
    "wrong directory": (lambda d: zipped(d, lambda b: b.replace(b"PK\1\2", b"PK\1\3")), ["again"]),
    "encrypted": (lambda d: zipped(d, partial(set_entries, flags=1, method=8)), ["fetch it again"]),
    "Deflate64": (lambda d: zipped(d, partial(set_entries, flags=0, method=9)), ["fetch it again"]),
}
FOLDER_DAMAGE = {  # what is done to a folder in Kaggle's layout, and what the message says
    "no image": (lambda d: [f.unlink() for f in (d / IMAGES).iterdir()], [IMAGES, "no JPEG", "image", "name"]),
    "no images folder": (lambda d: shutil.rmtree(d / IMAGES), [IMAGES, "data/README.md"]),
    "no labels file": (lambda d: (d / LABELS).unlink(), [LABELS, "data/README.md"]),
    "nothing": (lambda d: shutil.rmtree(d), ["is not a folder", "name one"]),
    "one ID twice": (copy_twice, [IMAGES, "two images of GalaxyID 1", "remove one"]),
    "no image of an ID": (lambda d: fifth_image(d).rename(d / IMAGES / "17.jpg"), ["no image", "remove"]),
    "labels not a zip": (lambda d: (d / LABELS).rename((d / LABELS).with_suffix(".zip")), [LABELS[:-4] + ".zip", "fetch it again"]),
    "labels empty": (lambda d: (d / LABELS).write_text(""), [LABELS, "fetch it again"]),
    "labels binary": (lambda d: (d / LABELS).write_bytes(encode()), [LABELS, "fetch it again"]),
}


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("damage", FOLDER_DAMAGE)
def test_folder(damage, command, damaged, weights, cli):
    act, words = FOLDER_DAMAGE[damage]
    act(damaged)
    cli(*COMMANDS[command](damaged, weights)).refused(damaged, *words)
    assert_whole(damaged.parent)


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("damage", ZIP_DAMAGE)
def test_zip(damage, command, damaged, weights, cli):
    act, words = ZIP_DAMAGE[damage]
    act(damaged)
    cli(*COMMANDS[command](damaged, weights)).refused(damaged / f"{IMAGES}.zip", *words)
    assert_whole(damaged.parent)


@pytest.mark.parametrize("damage", ["no image", "one ID twice", *ZIP_DAMAGE])
def test_images_to_predict(damage, damaged, weights, cli):
    act, words = (ZIP_DAMAGE | FOLDER_DAMAGE)[damage]
    act(damaged)
    images = next(damaged.glob(f"{IMAGES}*"))
    cli("predict", images, "--weights", weights, "--out", damaged / "table.csv").refused(images, *words)
    assert not (damaged / "table.csv").exists()


def test_stray_image(damaged, cli):
    "An image whose name is no number is one problem, and does not mix up the others and their labels."
    labels = pd.read_csv(damaged / LABELS)
    fifth_image(damaged).rename(damaged / IMAGES / "17.jpg")
    labels.replace({"GalaxyID": {labels.GalaxyID[5]: 17}}).to_csv(damaged / LABELS, index=False)
    shutil.copy(fifth_image(damaged), damaged / IMAGES / "thumb.jpg")
    images, table, _ = KaggleFolder(damaged).join()
    assert images.ids.astype(int).tolist() == table.GalaxyID.tolist()
    assert [Path(name).stem for name in images.names] == table.GalaxyID.astype(str).tolist()
    cli("data", "check", damaged).refused("thumb", "has 1 problem", "remove")


def test_no_folder_to_predict(tmp_path, weights, cli):
    cli("predict", tmp_path / "none", "--weights", weights).refused(tmp_path / "none", "does not exist", "name a folder or a zip")


def with_cell(table: pd.DataFrame, column: str, value) -> pd.DataFrame:
    "The table with the value in the sixth row of a column."
    table = table.astype({column: object})
    table.loc[5, column] = value
    return table


LABEL_DAMAGE = {  # what is done to the table of labels, and what the message says; ID stands for the sixth GalaxyID
    "no column": (lambda t: t.drop(columns="Class7.2"), [LABELS, "Class7.2", "it needs"]),
    "no GalaxyID": (lambda t: t.drop(columns="GalaxyID"), [LABELS, "GalaxyID", "it needs"]),
    "NaN": (partial(with_cell, column="Class1.1", value=np.nan), ["ID", "question 1", "not a number", "correct or remove"]),
    "above 1": (partial(with_cell, column="Class6.1", value=1.5), ["ID", "question 6", "outside [0, 1] (1.5)", "correct or remove"]),
    "below 0": (partial(with_cell, column="Class9.1", value=-0.25), ["ID", "question 9", "outside [0, 1] (-0.25)", "correct or remove"]),
    "infinite": (partial(with_cell, column="Class9.1", value=np.inf), ["ID", "question 9", "outside [0, 1]", "correct or remove"]),
    "sum is not 1": (lambda t: t.assign(**{"Class6.1": t["Class6.1"] / 2}), ["question 6", "does not sum to 1", "correct or remove"]),
    "sum is not the parent's": (lambda t: t.assign(**{"Class7.1": 0.0}), ["question 7", "does not sum to Class1.1", "correct or remove"]),
    "text": (partial(with_cell, column="Class2.1", value="many"), [LABELS, "ID", "Class2.1", "many", "correct or remove"]),
    "text for an ID": (partial(with_cell, column="GalaxyID", value="NGC 1300"), [LABELS, "NGC 1300", "correct or remove"]),
    "one ID twice": (lambda t: pd.concat([t, t.iloc[[5]]]), [LABELS, "ID", "more than once", "remove"]),
    "ID without image": (partial(with_cell, column="GalaxyID", value=17), ["GalaxyID 17", "image", "remove"]),
}


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("damage", LABEL_DAMAGE)
def test_labels(damage, command, damaged, weights, cli):
    act, words = LABEL_DAMAGE[damage]
    table = pd.read_csv(damaged / LABELS)
    act(table).to_csv(damaged / LABELS, index=False)
    words = [str(table.GalaxyID[5]) if word == "ID" else word for word in words]
    cli(*COMMANDS[command](damaged, weights)).refused(damaged, *words)
    assert not (damaged.parent / "run").exists()


def tampered_header(file: Path, weights: Path, **values):
    "The weights with another header."
    about = read_header(weights) | values
    save_file(load_file(weights), file, metadata={"gzpaper": json.dumps(about)})


WEIGHTS_DAMAGE = {  # how a file of weights is made from a good one, and what the message says apart from its name
    "missing": (lambda f, w: None, ["does not exist", "name a file of weights"]),
    "a folder": (lambda f, w: f.mkdir(), ["name a file of weights"]),
    "empty": (lambda f, w: f.write_bytes(b""), ["fetch it or train it again"]),
    "truncated": (lambda f, w: f.write_bytes(w.read_bytes()[:-100]), ["not a whole safetensors file", "fetch it or train it again"]),
    "cut in its header": (lambda f, w: f.write_bytes(w.read_bytes()[:100]), ["fetch it or train it again"]),
    "pickle": (lambda f, w: f.write_bytes(pickle.dumps({"a": 1})), ["fetch it or train it again"]),
    "torch.save": (lambda f, w: torch.save({"a": torch.zeros(1)}, f), ["fetch it or train it again"]),
    "another program": (lambda f, w: save_file({"a": torch.zeros(1)}, f), ["another program", "name"]),
    "adapters": (lambda f, w: save_file({"a": torch.zeros(1)}, f, metadata={"gzpaper adapters": "{}"}),
                 ["adapters alone", "weights.safetensors"]),
    "empty header": (lambda f, w: save_file({"a": torch.zeros(1)}, f, metadata={"gzpaper": "{}"}), ["another program", "name"]),
    "other columns": (lambda f, w: tampered_header(f, w, columns=["a"]), ["other columns", "name"]),
    "other shapes": (lambda f, w: tampered_header(f, w, spec=Spec(model_parameters={"width": 3}, size=32).to_dict()),
                     ["does not fit the model it names, vgg7", "fetch it or train it again"]),
    "another input": (lambda f, w: tampered_header(f, w, input=read_header(w)["input"] | {"side": 64}),
                      ["32 px from 64", "contradicts its spec", "fetch it or train it again"]),
    "no colours": (lambda f, w: tampered_header(f, w, input=read_header(w)["input"] | {"std": [0, 0, 0]}),
                   ["std [0, 0, 0]", "not of three colours", "fetch it or train it again"]),
    "unknown model": (lambda f, w: tampered_header(f, w, spec=Spec().to_dict() | {"model": "vgg99"}), ["vgg99", "choose"]),
    "unknown parameter": (lambda f, w: tampered_header(f, w, spec=Spec().to_dict() | {"model_parameters": {"momentum": 1}}),
                          ["momentum", "choose"]),
    "no input": (lambda f, w: tampered_header(f, w, input={}), ["fetch it or train it again"]),
}


@pytest.mark.parametrize("damage", WEIGHTS_DAMAGE)
def test_weights(damage, mock_folder, tmp_path, weights, cli):
    act, words = WEIGHTS_DAMAGE[damage]
    file = tmp_path / "w.safetensors"
    act(file, weights)
    cli("predict", mock_folder / IMAGES, "--weights", file, "--out", tmp_path / "table.csv").refused(file, *words)
    assert not (tmp_path / "table.csv").exists()


@pytest.fixture(scope="module")
def stopped(mock_folder, tmp_path_factory) -> Path:
    "The folder of a training that was stopped between its last epoch and its weights."
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gzpaper.train.save_weights", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        galaxies = load_galaxies(mock_folder, folder / "store-35", 35, 8, 8)
        spec = Spec(model_parameters={"width": 2}, size=32, epochs=1, batch_size=12)
        fit(spec, galaxies, folder, progress=False)
    return folder


@pytest.fixture
def half_run(stopped, tmp_path) -> Path:
    "A copy of the stopped training to damage or to continue."
    return Path(shutil.copytree(stopped, tmp_path / "run"))


CHECKPOINT_DAMAGE = {
    "truncated": lambda f: f.write_bytes(f.read_bytes()[:-5000]),
    "garbage": lambda f: f.write_bytes(b"garbage" * 100),
    "empty": lambda f: f.write_bytes(b""),
    "another program": lambda f: torch.save({"model": {}}, f),
    "a list": lambda f: torch.save([1, 2], f),
    "pickle": lambda f: f.write_bytes(pickle.dumps(Path("x"), protocol=2)),
}


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGE)
def test_damaged_checkpoint(damage, mock_folder, half_run, cli):
    CHECKPOINT_DAMAGE[damage](half_run / "checkpoint.pt")
    before = contents(half_run)
    cli("train", mock_folder, "--out", half_run, *TINY).refused(half_run / "checkpoint.pt", "is damaged", "remove it")
    assert contents(half_run) == before


OTHER_TRAINING = {"parameters": ["--learning-rate", 0.5], "galaxies": ["--validation", 10]}


@pytest.mark.parametrize("state", ["stopped", "finished"])
@pytest.mark.parametrize("other", OTHER_TRAINING)
def test_folder_of_another_training(other, state, mock_folder, half_run, cli):
    if state == "finished":
        assert cli("train", mock_folder, "--out", half_run, *TINY).code == 0
    before = contents(half_run)
    cli("train", mock_folder, "--out", half_run, *TINY, *OTHER_TRAINING[other]).refused(half_run, "other", "name another folder")
    assert contents(half_run) == before


def test_stopped_training_goes_on(mock_folder, half_run, cli):
    assert cli("train", mock_folder, "--out", half_run, *TINY).code == 0
    assert (half_run / "weights.safetensors").exists() and not (half_run / "checkpoint.pt").exists()


STORE_DAMAGE = {
    "pixels cut off": lambda s: (s / "pixels.npy").write_bytes((s / "pixels.npy").read_bytes()[:1000]),
    "no IDs": lambda s: (s / "ids.npy").unlink(),
    "digests empty": lambda s: (s / "digests.npy").write_bytes(b""),
    "no JSON": lambda s: (s / "store.json").write_text("["),
}


@pytest.mark.parametrize("damage", STORE_DAMAGE)
def test_damaged_store_is_built_anew(damage, mock_folder, tmp_path):
    images = KaggleFolder(mock_folder).images()
    whole = pixel_store(images, tmp_path / "store", 35).read([0, 39])
    STORE_DAMAGE[damage](tmp_path / "store")
    np.testing.assert_array_equal(pixel_store(images, tmp_path / "store", 35).read([0, 39]), whole)


UNWRITABLE = ["file/table.csv", "/proc/table.csv", "/proc/none/table.parquet"]


@pytest.mark.parametrize("out", UNWRITABLE)
def test_unwritable_table(out, mock_folder, tmp_path, weights, cli):
    (tmp_path / "file").write_text("kept")
    result = cli("predict", mock_folder / "images_test_rev1", "--weights", weights, "--rotations", 1, "--out", tmp_path / out)
    result.refused(tmp_path / out, "cannot be written", "name another place")
    assert contents(tmp_path) == {"file": b"kept"}


@pytest.mark.parametrize("out, words", [("file", ["is a file", "name a folder"]), ("file/run", ["cannot be written", "name another place"]),
                                        ("/proc/run", ["cannot be written", "name another place"])])
def test_unwritable_run(out, words, mock_folder, tmp_path, cli):
    (tmp_path / "file").write_text("kept")
    cli("train", mock_folder, "--out", tmp_path / out, *TINY).refused(tmp_path / out, *words)
    assert contents(tmp_path) == {"file": b"kept"}


def test_a_run_does_not_go_among_its_galaxies(mock_folder, cli):
    before = {file: file.stat().st_mtime_ns for file in mock_folder.rglob("*")}
    cli("train", mock_folder, "--out", mock_folder / ".", *TINY).refused(mock_folder, "name another folder")
    assert before == {file: file.stat().st_mtime_ns for file in mock_folder.rglob("*")}


@pytest.mark.parametrize("mark, word", [(";", "semicolons"), ("\t", "tabs")])
def test_what_stands_between_columns(mark, word, tmp_path):
    path = tmp_path / "table.csv"
    predictions_table([1], np.full((1, 37), 0.5)).to_csv(path, sep=mark, index=False)
    with pytest.raises(InputError, match=f"table.csv has {word} between its columns: write it with commas"):
        read_table(path)


def test_a_folder_is_not_written_over(mock_folder, tmp_path, weights, cli):
    (tmp_path / "table.csv").mkdir()
    (tmp_path / "table.csv/notes.txt").write_text("kept")
    result = cli("predict", mock_folder / "images_test_rev1", "--weights", weights, "--rotations", 1, "--out", tmp_path / "table.csv")
    assert contents(tmp_path) == {"table.csv/notes.txt": b"kept"}
    result.refused(tmp_path / "table.csv", "is a folder", "name a file")


@contextmanager
def full_disk(size: int):
    "No file grows beyond so many bytes, here and in new processes: a write fails after a part of it is written."
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_while_a_store_is_written(mock_folder, tmp_path, gzpaper):
    "An older store at the same path survives."
    images, store = KaggleFolder(mock_folder).images(), tmp_path / "store-70"
    old = pixel_store(images, store, 35)
    before = contents(tmp_path)
    with full_disk(200_000):
        result = gzpaper("train", mock_folder, "--out", tmp_path, *TINY, "--size", 64)
    result.refused(store, "cannot be written", "File too large", "Free some space")
    assert contents(tmp_path) == before
    assert PixelStore.open(store).side == 35
    np.testing.assert_array_equal(PixelStore.open(store).read([0]), old.read([0]))


def test_full_disk_while_a_checkpoint_is_written(mock_folder, half_run, cli):
    "The store survives, and the same command starts again when there is space."
    for file in ("checkpoint.pt", "history.csv"):
        (half_run / file).unlink()
    before = contents(half_run)
    with full_disk(200_000):
        result = cli("train", mock_folder, "--out", half_run, *TINY)
    result.refused(half_run / "checkpoint.pt", "cannot be written", "Free some space")
    (half_run / "history.csv").unlink(missing_ok=True)
    assert contents(half_run) == before
    assert cli("train", mock_folder, "--out", half_run, *TINY).code == 0


def test_full_disk_while_weights_are_written(mock_folder, half_run, cli):
    "The checkpoint survives, and the same command goes on from it when there is space."
    before = contents(half_run)
    with full_disk(200_000):
        result = cli("train", mock_folder, "--out", half_run, *TINY)
    result.refused(half_run / "weights.safetensors", "cannot be written", "Free some space")
    assert contents(half_run) == before
    assert cli("train", mock_folder, "--out", half_run, *TINY).code == 0


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_full_disk_while_a_table_is_written(suffix, mock_folder, tmp_path, weights, cli):
    "The older table survives."
    table = tmp_path / f"table{suffix}"
    table.write_text("old")
    with full_disk(4000):
        result = cli("predict", mock_folder / IMAGES, "--weights", weights, "--rotations", 1, "--out", table, "--overwrite")
    result.refused(table, "cannot be written", "Free some space")
    assert contents(tmp_path) == {table.name: b"old"}


def test_a_table_is_not_written_over(mock_folder, tmp_path, weights, cli):
    for name in ("table.csv", "galaxies.fits"):
        (tmp_path / name).write_text("old")
    arguments = "predict", mock_folder / "images_test_rev1", "--weights", weights, "--rotations", 1
    cli(*arguments, "--out", tmp_path / "table.csv").refused("table.csv is there already", "--overwrite")
    arguments = *arguments, "--out", tmp_path / "new.csv", "--catalogue", tmp_path / "galaxies.fits"
    cli(*arguments).refused("galaxies.fits is there already", "--overwrite")
    assert contents(tmp_path) == {"table.csv": b"old", "galaxies.fits": b"old"}
    assert cli(*arguments, "--overwrite").code == 0
    assert (tmp_path / "galaxies.fits").read_bytes().startswith(b"SIMPLE")


TRAIN_OPTIONS = {  # what is asked for, and what the message says
    "model": (["--model", "vgg99"], ["vgg99", "vgg7", "choose"]),
    "head": (["--head", "tanh"], ["tanh", "tree_softmax", "choose"]),
    "optimiser": (["--optimiser", "lion"], ["lion", "adamw", "choose"]),
    "schedule": (["--schedule", "step"], ["step", "one_cycle", "choose"]),
    "precision": (["--precision", "fp8"], ["fp8", "bf16", "choose"]),
    "fp16 on a CPU": (["--precision", "fp16"], ["fp16", "use auto"]),
    "device": (["--device", "warp"], ["warp", "use auto or cpu"]),
    "absent device": (["--device", "cuda:99"], ["cuda:99", "use auto or cpu"]),
    "large field": (["--field", 300], ["field 300", "between 0 and the 232 px"]),
    "no field": (["--field", 0], ["field 0", "between 0 and the 232 px"]),
    "size": (["--size", 0], ["size is 0", "1 or more"]),
    "width": (["--width", 0], ["width is 0", "1 or more"]),
    "dropout": (["--dropout", 1], ["dropout is 1", "below 1"]),
    "epochs": (["--epochs", 0], ["epochs is 0", "1 or more"]),
    "batch size": (["--batch-size", 0], ["batch_size is 0", "2 or more"]),
    "batch of one": (["--batch-size", 1], ["batch_size is 1", "2 or more"]),
    "no parts": (["--accumulate", 0], ["accumulate is 0", "1 or more"]),
    "too many parts": (["--accumulate", 7], ["accumulate is 7", "a batch of 12 has at most 6 parts"]),
    "learning rate": (["--learning-rate", -1], ["learning_rate is -1", "above 0"]),
    "seed": (["--seed", -1], ["seed is -1", "0 or more"]),
    "one fold": (["--folds", 1], ["fold 0 of 1", "out of range", "2 or more"]),
    "negative folds": (["--folds", -2], ["folds is -2", "0 or more"]),
    "a fold too many": (["--folds", 3, "--fold", 4], ["fold 4 of 3", "out of range", "1 to the number of folds"]),
    "negative fold": (["--folds", 3, "--fold", -1], ["fold -1 of 3", "out of range"]),
    "a fold of none": (["--fold", 1], ["fold 1 of 0", "out of range"]),
    "more folds than galaxies": (["--folds", 500], ["0 validation galaxies", "too few", "add galaxies"]),
    "negative test": (["--test", -3], ["-3 in test", "0 or more"]),
    "too few galaxies": (["--validation", 30, "--test", 30], ["40 galaxies are too few", "30", "lower these"]),
    "one left": (["--validation", 31, "--test", 8], ["1 training", "too few", "add galaxies"]),
}


@pytest.mark.parametrize("option", TRAIN_OPTIONS)
def test_train_option(option, mock_folder, tmp_path, cli):
    arguments, words = TRAIN_OPTIONS[option]
    cli("train", mock_folder, "--out", tmp_path / "run", *TINY, *arguments).refused(*words)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.safetensors"))
    assert_whole(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(mock_folder, tmp_path, cli):
    cli("train", mock_folder, "--out", tmp_path / "run", *TINY, "--device", "cuda").refused("cuda", "use auto or cpu")
    assert not list(tmp_path.iterdir())


DEEP_OPTIONS = {  # what is asked of another network than vgg7, and what the message says; FILE stands for weights of a vgg7 of width 2
    "vgg11 and its size": (["--model", "vgg11", "--size", 31], ["vgg11", "31 px", "32 px or more"]),
    "vgg16 and its size": (["--model", "vgg16", "--size", 16], ["vgg16", "16 px", "32 px or more"]),
    "resnet50 and its size": (["--model", "resnet50", "--size", 1], ["resnet50", "1 px", "32 px or more"]),
    "another network's parameter": (["--model", "resnet50", "--width", 2], ["resnet50", "no parameter 'width'", "choose"]),
    "adapters of nothing": (["--model", "resnet50_lora"], ["resnet50_lora", "gzpaper train --pretrained"]),
    "pretrained, not there": (["--pretrained", "nowhere.pth"], ["nowhere.pth", "does not exist", "name a file of weights"]),
    "pretrained, another width": (["--width", 3, "--pretrained", "FILE"],
                                  ["FILE: 0.0.weight has shape [2, 3, 3, 3]", "vgg7 needs [3, 3, 3, 3]", "the same network"]),
    "pretrained, another depth": (["--model", "resnet50", "--pretrained", "FILE"], ["FILE has no weights conv1.weight", "not a resnet50"]),
    "teacher, not there": (["--width", 2, "--teacher", "nowhere.csv"], ["nowhere.csv", "does not exist"]),
    "teacher, no table": (["--width", 2, "--teacher", "FILE"], ["FILE", "is not a table in UTF-8"]),
    "ImageNet": (["--width", 2, "--pretrained", "imagenet"], ["no ImageNet weights for vgg7", "choose one of vgg11"]),
}


@pytest.mark.parametrize("option", DEEP_OPTIONS)
def test_deep_option(option, mock_folder, tmp_path, weights, cli):
    arguments, words = ([str(word).replace("FILE", str(weights)) for word in part] for part in DEEP_OPTIONS[option])
    cli("train", mock_folder, "--out", tmp_path / "run", *DEEP, *arguments).refused(*words)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.safetensors"))


BLOW_UPS = {  # what a step's loss becomes, and what the message says if this is the second of six steps, or the last
    "loss": (lambda loss: loss * float("nan"), "loss is nan in epoch 2, step 2 of 6", "loss is nan in epoch 2, step 6 of 6"),
    "infinite loss": (lambda loss: loss / 0, "loss is inf in epoch 2, step 2 of 6", "loss is inf in epoch 2, step 6 of 6"),
    "gradient": (lambda loss: loss + (0 * loss).sqrt(), "loss is nan in epoch 2, step 3 of 6", "validation RMSE is nan after epoch 2"),
}


@pytest.mark.parametrize("every", [1, 20])  # steps after which the loss is looked at
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("what", BLOW_UPS)
def test_training_blows_up(what, last, every, mock_folder, tmp_path, monkeypatch, cli):
    "It stops; checkpoint and history are those of the last good epoch, and without the mishap it goes on from there."
    change, *words = BLOW_UPS[what]
    command = ["train", mock_folder, *TINY, "--epochs", 2, "--batch-size", 4, "--precision", "fp32"]
    plain, calls = torch.nn.functional.mse_loss, []

    def mishap(*arguments):
        calls.append(arguments)
        return change(plain(*arguments)) if len(calls) == (12 if last else 8) else plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("gzpaper.train.F.mse_loss", mishap)
        patch.setattr("gzpaper.train._CHECK_EVERY", every)
        cli(*command, "--out", tmp_path / "run").refused(words[last], "a learning_rate below 0.002", "the checkpoint", "is kept")
    assert len(calls) == 12 or every == 1
    assert pd.read_csv(tmp_path / "run/history.csv").epoch.tolist() == [1]
    kept = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert len(kept["history"]) == 1 and all(value.isfinite().all() for value in kept["model"].values())
    assert cli(*command, "--out", tmp_path / "run").code == 0 and cli(*command, "--out", tmp_path / "alone").code == 0
    assert (tmp_path / "run/weights.safetensors").read_bytes() == (tmp_path / "alone/weights.safetensors").read_bytes()


MEMORY = {  # what torch raises
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "CPU elsewhere": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "Apple": RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB)."),
}


def raising(error: Exception):
    def step(*arguments):
        raise error

    return step


@pytest.mark.parametrize("where", MEMORY)
def test_out_of_memory(where, mock_folder, tmp_path, monkeypatch, cli):
    monkeypatch.setattr("gzpaper.train.Training.step", raising(MEMORY[where]))
    result = cli("train", mock_folder, "--out", tmp_path / "run", *TINY)
    result.refused("out of memory", "batches of 12", "try batch_size 6", "accumulate 2")
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("history.csv"))


@pytest.mark.parametrize("remedy", ["batch_size", "accumulate"])
def test_who_follows_the_advice_trains_in_the_end(remedy, mock_folder, tmp_path, monkeypatch):
    "Memory holds four galaxies at once."
    backward = gzpaper.train._backward

    def scarce(learner, images, *others):
        if len(images) > 4 * learner.spec.accumulate:
            raise MEMORY["GPU"]
        return backward(learner, images, *others)

    monkeypatch.setattr("gzpaper.train._backward", scarce)
    values, tried = {"batch_size": 24, "accumulate": 1}, []
    while (tmp_path / f"{len(tried)}/run/weights.safetensors").exists() is False:
        try:
            train(mock_folder, tmp_path / str(len(tried)), **values)
        except InputError as refusal:
            advice = re.search(rf"{remedy} (\d+)", str(refusal).split("try ")[1])
            assert advice and len(tried) < 6, refusal
            tried.append(values)
            values = values | {remedy: int(advice[1])}
    assert tried and values[remedy] != tried[0][remedy]


def test_other_errors_are_not_about_memory(mock_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("gzpaper.train.Training.step", raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(mock_folder, tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C++ compiler.\nPlease set CXX."), ImportError("no triton"), RuntimeError()])
def test_no_torch_compile(error, mock_folder, tmp_path, monkeypatch, cli):
    "Training says so in one line and goes on: the result is the same."
    monkeypatch.setattr("torch.compile", raising(error))
    done = cli("train", mock_folder, "--out", tmp_path / "run", *TINY, "--compile")
    assert done.code == 0
    [line] = [line for line in done.lines if "torch.compile" in line]
    assert_says(line, (str(error) or "RuntimeError").splitlines()[0], "training without it")
    assert "CXX" not in done.err
    assert cli("train", mock_folder, "--out", tmp_path / "plain", *TINY).code == 0
    assert (tmp_path / "run/weights.safetensors").read_bytes() == (tmp_path / "plain/weights.safetensors").read_bytes()


PREDICT_OPTIONS = {
    "rotations": (["--rotations", 0], ["rotations is 0", "1 or more"]),
    "device": (["--device", "warp"], ["warp", "use auto or cpu"]),
    "suffix": (["--out", "table.txt"], ["table.txt", ".csv or .parquet", "name a file"]),
    "no suffix": (["--out", "table"], ["table", ".csv or .parquet", "name a file"]),
    "catalogue": (["--catalogue", "galaxies.txt"], ["galaxies.txt", ".csv or .parquet or .fits", "name a file"]),
    "scale": (["--scale", 0], ["scales are [0.0]", "above 0"]),
    "shard": (["--shard", "3"], ["shard is '3'", "such as 2/8"]),
    "no such shard": (["--shard", "3/2"], ["shard 3/2", "1/n to n/n"]),
}


@pytest.mark.parametrize("option", PREDICT_OPTIONS)
def test_predict_option(option, mock_folder, tmp_path, weights, cli, monkeypatch):
    "What cannot be done is refused before an image is decoded."
    monkeypatch.chdir(tmp_path)
    arguments, words = PREDICT_OPTIONS[option]
    result = cli("predict", mock_folder / IMAGES, "--weights", weights, *arguments)
    result.refused(*words)
    assert len(result.lines) == 1 and not list(tmp_path.iterdir()), result.err


def train(mock_folder: Path, tmp_path: Path, size: int = 32, **parameters):
    "Train on galaxies that are stored 35 px wide."
    galaxies = load_galaxies(mock_folder, tmp_path / "store", 35, 8, 8)
    spec = Spec(model_parameters={"width": 2}, size=size, epochs=1, **parameters)
    fit(spec, galaxies, tmp_path / "run", progress=False)


def colours_of_three(mock_folder: Path, tmp_path: Path):
    "The central-pixel benchmark from three galaxies."
    galaxies = load_galaxies(mock_folder, tmp_path / "store", 35, 8, 8)
    central_pixel(galaxies, galaxies.rows("train")[:3], galaxies.rows("validation"))


CALLS = {  # what no command offers, and what the message says
    "head": (lambda m, t: build_model("vgg7", head="tanh"), ["tanh", "sigmoid", "choose"]),
    "model's parameter": (lambda m, t: build_model("vgg7", wide=3), ["vgg7", "wide"]),
    "training parameter": (lambda m, t: Spec.from_dict({"momentum": 0.9}), ["momentum", "learning_rate", "choose"]),
    "augmentation": (lambda m, t: Spec.from_dict({"augment": {"twist": 1}}), ["augment.twist", "choose"]),
    "optimiser": (partial(train, optimiser="lion"), ["lion", "adamw", "choose"]),
    "schedule": (partial(train, schedule="step"), ["step", "one_cycle", "choose"]),
    "store of another scale": (partial(train, size=64), ["35", "70", "build it again"]),
    "few central colours": (colours_of_three, ["3 training galaxies", "6 groups", "add"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_call(call, mock_folder, tmp_path):
    act, words = CALLS[call]
    with pytest.raises(InputError) as refusal:
        act(mock_folder, tmp_path)
    assert_says(str(refusal.value), *words)


PREDICTIONS = {  # how a predictions table is written from the labels, and what the message says apart from its name
    "missing.csv": (lambda t, f: None, ["does not exist"]),
    "missing.parquet": (lambda t, f: None, ["does not exist"]),
    "text.parquet": (lambda t, f: f.write_text("no table"), ["fetch it again"]),
    "truncated.parquet": (lambda t, f: (t.to_parquet(f), f.write_bytes(f.read_bytes()[:-100])), ["fetch it again"]),
    "truncated.zip": (lambda t, f: (t.to_csv(f), f.write_bytes(f.read_bytes()[:1000])), ["fetch it again"]),
    "stream.zip": (lambda t, f: (t.to_csv(f), f.write_bytes(break_stream(f.read_bytes()))), ["fetch it again"]),
    "truncated.csv": (lambda t, f: f.write_text(t.to_csv(index=False)[:300]), ["Class", "it needs"]),
    "column.parquet": (lambda t, f: t.drop(columns="Class3.1").to_parquet(f), ["Class3.1", "it needs"]),
    "text.csv": (lambda t, f: with_cell(t, "Class3.1", "many").to_csv(f), ["Class3.1", "many", "correct or remove"]),
    "nan.csv": (lambda t, f: with_cell(t, "Class3.1", np.nan).to_csv(f), ["Class3.1", "correct or remove"]),
    "twice.csv": (lambda t, f: pd.concat([t, t[5:6]]).to_csv(f), ["more than once", "remove"]),
    "twice.parquet": (lambda t, f: pd.concat([t, t[5:6]]).to_parquet(f), ["more than once", "remove"]),
    "others.csv": (lambda t, f: t.assign(GalaxyID=t.GalaxyID + 1_000_000).to_csv(f), ["no GalaxyID in common", "name the labels"]),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_evaluate(name, mock_folder, tmp_path, cli):
    act, words = PREDICTIONS[name]
    act(pd.read_csv(mock_folder / LABELS), tmp_path / name)
    cli("evaluate", tmp_path / name, mock_folder / LABELS).refused(tmp_path / name, *words)


def test_mock_into_an_existing_folder(damaged, cli):
    before = contents(damaged)
    cli("data", "mock", damaged, "--galaxies", 2).refused(damaged, "exists", "name another folder")
    assert contents(damaged) == before


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    "A copy of what a profile needs of the repository."
    folder = tmp_path_factory.mktemp("repository")
    for name in ("paper", "nbs/paper", "gzpaper"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("runs", "__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "settings.ini", folder)
    return folder


@pytest.fixture
def repository(original, tmp_path, monkeypatch) -> Path:
    "A repository of one's own, which the commands run in."
    folder = Path(shutil.copytree(original, tmp_path / "repository"))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GZPAPER_RUNS", raising=False)
    return folder


def list_sample(mock_folder: Path, repository: Path, **values) -> pd.DataFrame:
    "Write data/sample.csv with the first five mock galaxies; the values replace those of the third."
    galaxies = load_galaxies(mock_folder, repository.parent / "store", 35, 8, 8)
    table = sample_table(galaxies)[:5].astype({"GalaxyID": int})
    for column, value in values.items():
        table.loc[2, column] = value
    (repository / "data").mkdir()
    table.to_csv(repository / "data/sample.csv", index=False)
    return table


SAMPLES = {  # what is wrong in the list, and what the message says
    "pixels": ({"pixels": "0123456789ab"}, ["does not have the pixels", "fetch it again", "ID"]),
    "labels": ({"labels": "0123456789ab"}, ["does not have the labels", LABELS, "use the challenge"]),
    "galaxy": ({"GalaxyID": 17}, ["no image of GalaxyID 17", "add the images"]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_of_others(name, mock_folder, repository, cli):
    values, words = SAMPLES[name]
    table = list_sample(mock_folder, repository, **values)
    words = [str(table.GalaxyID[2]) if word == "ID" else word for word in words]
    cli("data", "sample", "--from", mock_folder, repository / "out").refused(mock_folder, *words)
    assert not (repository / "out").exists()
    assert_whole(repository)


def test_sample_into_an_existing_folder(mock_folder, repository, cli):
    list_sample(mock_folder, repository)
    (repository / "out").mkdir()
    (repository / "out/kept.txt").write_text("kept")
    cli("data", "sample", "--from", mock_folder, repository / "out").refused(repository / "out", "exists already", "name a new folder")
    assert contents(repository / "out") == {"kept.txt": b"kept"}


def test_sample_without_a_list(mock_folder, repository, cli):
    cli("data", "sample", "--from", mock_folder, repository / "out").refused("data/sample.csv", "fetch it again")
    (repository / "data").mkdir()
    (repository / "data/sample.csv").write_text("GalaxyID\n1\n")
    cli("data", "sample", "--from", mock_folder, repository / "out").refused("data/sample.csv", "fetch it again")


def test_sample_with_a_full_disk(mock_folder, repository, cli):
    list_sample(mock_folder, repository)
    with full_disk(1000):
        result = cli("data", "sample", "--from", mock_folder, repository / "out")
    result.refused(repository / "out", "cannot be written", "Free some space")
    assert not (repository / "out").exists()
    assert_whole(repository)


PROFILE_DAMAGE = {  # a profile's text, made from that of smoke.yaml, and what the message says
    "unknown key": (lambda text: text + "momentum: 0.9\n", ["smoke.yaml", "momentum", "declare", "learning_rate"]),
    "no key": (lambda text: text.replace("data:", "#"), ["smoke.yaml", "data", "add"]),
    "no YAML": (lambda text: "[" + text, ["smoke.yaml", "cannot be read", "correct"]),
    "no mapping": (lambda text: "- data\n", ["smoke.yaml", "correct"]),
    "no such folder": (lambda text: text.replace('data: ""', "data: nowhere"), ["nowhere", "name the folder", "data/README.md"]),
}


@pytest.mark.parametrize("damage", PROFILE_DAMAGE)
def test_profile(damage, repository, cli):
    profile = repository / "paper/profiles/smoke.yaml"
    edit, words = PROFILE_DAMAGE[damage]
    profile.write_text(edit(profile.read_text()))
    cli("reproduce", "--profile", "smoke").refused(*words)
    assert not [*(repository / "runs").glob("[!.]*")]  # but for a lock


REPRODUCE_OPTIONS = {
    "profile": (["--profile", "smooth"], ["smooth", "smoke", "choose one of"]),
    "notebook": (["--profile", "smoke", "--only", "99_end"], ["99_end", "03_vgg7", "choose one of"]),
    "data": (["--profile", "smoke", "--data", "/nowhere"], ["nowhere", "name the folder"]),
}


@pytest.mark.parametrize("option", REPRODUCE_OPTIONS)
def test_reproduce_option(option, repository, cli):
    arguments, words = REPRODUCE_OPTIONS[option]
    cli("reproduce", *arguments).refused(*words)
    assert not [*(repository / "runs").glob("[!.]*")]  # but for a lock


def test_outside_of_a_repository(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gzpaper.__file__", str(tmp_path / "site-packages/gzpaper/__init__.py"))
    cli("reproduce").refused(tmp_path, "not inside", "clone it")


def test_mock_galaxies_are_not_published(repository, cli):
    for step in plan(read_profile("smoke")):
        step.state.parent.mkdir(parents=True, exist_ok=True)
        step.state.write_text(json.dumps({"key": step.key, "outputs": []}))
    table = repository / "runs/smoke/tables/scores.json"
    table.parent.mkdir(parents=True)
    table.write_text(json.dumps({"notebook": "02_benchmarks", "mock": True, "runs": []}))
    before = contents(repository / "paper")
    cli("publish", "--profile", "smoke").refused("smoke", "mock galaxies", "use one with real galaxies")
    assert contents(repository / "paper") == before and not (repository / "figures").exists()


def test_stale_results_are_not_published(repository, cli):
    cli("publish", "--profile", "smoke").refused("smoke", "01_dataset", "not up to date", "gzpaper reproduce --profile smoke")


def in_processes(mock_folder: Path, tmp_path: Path, weights: Path) -> dict[str, tuple]:
    "A refused command line of each kind, and what the message says."
    return {
        "check": (["data", "check", tmp_path / "none"], ["none", "name one"]),
        "train": (["train", mock_folder, "--out", tmp_path / "run", *TINY, "--model", "vgg99"], ["vgg99", "choose"]),
        "predict": (["predict", mock_folder / IMAGES, "--weights", mock_folder / LABELS], [LABELS, "fetch it"]),
        "evaluate": (["evaluate", mock_folder / LABELS, mock_folder / "truth.csv"], ["truth.csv", "Class1.1", "it needs"]),
        "reproduce": (["reproduce", "--profile", "smooth"], ["smooth", "choose one of"]),
    }


@pytest.mark.parametrize("command", ["check", "train", "predict", "evaluate", "reproduce"])
def test_process(command, mock_folder, tmp_path, weights, gzpaper):
    "In a process of its own: one line, exit code 1 and no traceback."
    arguments, words = in_processes(mock_folder, tmp_path, weights)[command]
    result = gzpaper(*arguments, cwd=ROOT)
    result.refused(*words)
    assert [line for line in result.lines if "img/s" not in line] == result.lines[-1:], result.err
