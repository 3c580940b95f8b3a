"""Weights, parameters, files that unfold and disks that say no: right, or refused in one line before memory or time is spent."""

import errno
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DEEP, TINY, assert_says, assert_whole, limited
from safetensors.torch import load_file, save_file

from gzpaper.data import read_table
from gzpaper.decoding import decode
from gzpaper.files import atomic, check_output, exclusive, read_yaml
from gzpaper.images import Images
from gzpaper.models import load_features, outlined, vgg7
from gzpaper.predict import READABLE
from gzpaper.spec import Spec
from gzpaper.tree import COLUMNS, InputError, predictions_table
from gzpaper.weights import load_weights, read_header

IMAGES = "images_training_rev1"


def refusal(call, *arguments, **options) -> str:
    "The one line of an `InputError`."
    with pytest.raises(InputError) as refused:
        call(*arguments, **options)
    assert len(str(refused.value)) < 800
    return str(refused.value)


# Weights


def changed(file: Path, weights: Path, tensors: dict | None = None, dtype=None, **about):
    "The weights with other tensors, or another header."
    state = {name: value.to(dtype) if dtype else value for name, value in load_file(weights).items()}
    for name, act in (tensors or {}).items():
        act(state[name])
    save_file(state, file, metadata={"gzpaper": json.dumps(read_header(weights) | about)})


def with_header(file: Path, header: bytes, body: bytes = b""):
    "A safetensors file with any header."
    file.write_bytes(struct.pack("<Q", len(header)) + header + body)


def about(weights: Path, text: str) -> bytes:
    "A safetensors header in which gzpaper's own part is some text."
    return json.dumps({"__metadata__": {"gzpaper": text}}).encode()


def with_spec(file: Path, weights: Path, **values):
    header = read_header(weights)
    parameters = values.pop("model_parameters", {})
    changed(file, weights, spec=header["spec"] | values | {"model_parameters": header["spec"]["model_parameters"] | parameters})


def with_input(file: Path, weights: Path, **values):
    changed(file, weights, input=read_header(weights)["input"] | values)


FIRST, VARIANCE = "features.0.0.weight", "features.0.1.running_var"
WEIGHTS = {  # how a file is made from good weights, and what the message says apart from its name
    "a NaN": (lambda f, w: changed(f, w, {FIRST: lambda v: v[0, 0, 0].fill_(math.nan)}), [FIRST, "NaN or infinite", "train it again"]),
    "infinite": (lambda f, w: changed(f, w, {"tail.2.bias": lambda v: v[:1].fill_(-math.inf)}), ["tail.2.bias", "NaN or infinite"]),
    "statistics": (lambda f, w: changed(f, w, {VARIANCE: lambda v: v.fill_(math.nan)}), [VARIANCE, "NaN or infinite"]),
    "a negative variance": (lambda f, w: changed(f, w, {VARIANCE: lambda v: v[:1].fill_(-1e-3)}), [VARIANCE, "variances below 0"]),
    "overflow": (lambda f, w: changed(f, w, {"features.0.1.weight": lambda v: v.fill_(3e38), FIRST: lambda v: v.fill_(3e38),
                                             "features.1.0.weight": lambda v: v.mul_(torch.tensor([1.0, -1.0])[:, None, None])}),
                 ["predictions are not finite", "train it again"]),
    "whole numbers": (lambda f, w: changed(f, w, dtype=torch.int32), ["torch.int32", "train it again"]),
    "a tensor too many": (lambda f, w: save_file(load_file(w) | {"other": torch.zeros(1)}, f,
                                                 metadata={"gzpaper": json.dumps(read_header(w))}), ["'other'", "does not fit"]),
    "no spec": (lambda f, w: with_header(f, about(w, json.dumps({"columns": read_header(w)["columns"]}))),
                ["does not give its", "train it again"]),
    "a list": (lambda f, w: changed(f, w, spec=[1]), ["does not give its", "train it again"]),
    "not JSON's": (lambda f, w: with_header(f, about(w, "[1, 2]")), ["another program"]),
    "deep": (lambda f, w: with_header(f, about(w, "[" * 100_000)), ["another program", "name a file"]),
    "deep itself": (lambda f, w: with_header(f, b"[" * 100_000), ["not a whole safetensors file"]),
    "huge": (lambda f, w: with_header(f, about(w, " " * 5 * 2**20)), ["more than 4 MiB", "fetch it"]),
    "said to be huge": (lambda f, w: f.write_bytes(struct.pack("<Q", 2**62) + b"{}"), ["more than 4 MiB", "fetch it"]),
    "width": (lambda f, w: with_spec(f, w, model_parameters={"width": 100_000}), ["width is 100000", "up to 8192"]),
    "width within limits": (lambda f, w: with_spec(f, w, model_parameters={"width": 8192}), ["vgg7 of 32 px", "more than 500,000,000"]),
    "width, less": (lambda f, w: with_spec(f, w, model_parameters={"width": 256}), ["does not fit the model it names, vgg7"]),
    "depth": (lambda f, w: with_spec(f, w, model_parameters={"depth": 10**9}), ["depth is 1000000000", "up to 100"]),
    "hidden, a text": (lambda f, w: with_spec(f, w, model_parameters={"hidden": "many"}), ["hidden is 'many'", "a whole number"]),
    "a model's list": (lambda f, w: with_spec(f, w, model=["vgg7"]), ["model is ['vgg7']", "a name"]),
    "size": (lambda f, w: with_spec(f, w, size=10**6), ["size is 1000000", "at most 2,048"]),
    "an epoch": (lambda f, w: with_spec(f, w, epochs=math.nan), ["epochs is nan", "a whole number"]),
    "input as text": (lambda f, w: with_input(f, w, size="32"), ["'32' px", "contradicts its spec"]),
    "a NaN colour": (lambda f, w: with_input(f, w, std=[0.1, math.nan, 0.1]), ["not of three colours"]),
    "an infinite colour": (lambda f, w: with_input(f, w, std=[0.1, 0.1, math.inf]), ["not of three colours"]),
    "colours as text": (lambda f, w: with_input(f, w, mean="abc"), ["fetch it or train it again"]),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(case, weights, tmp_path):
    make, words = WEIGHTS[case]
    file = tmp_path / "w.safetensors"
    make(file, weights)
    assert_says(refusal(load_weights, file), file, *words)


def test_the_command_line_refuses_weights(weights, mock_folder, tmp_path, cli):
    file = tmp_path / "w.safetensors"
    changed(file, weights, {FIRST: lambda v: v.fill_(math.nan)})
    cli("predict", mock_folder / IMAGES, "--weights", file, "--out", tmp_path / "table.csv").refused(file, FIRST, "NaN")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_are_right(dtype, weights, tmp_path):
    changed(tmp_path / "w.safetensors", weights, dtype=dtype)
    wanted, found = (load_weights(path)[0].state_dict() for path in (weights, tmp_path / "w.safetensors"))
    assert all(found[name].dtype == value.dtype for name, value in wanted.items())
    torch.testing.assert_close(found, wanted, rtol=2**-8, atol=1e-6)


LIMITED = """
import resource, sys
from gzpaper.tree import InputError
from gzpaper.weights import load_weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        load_weights(path)
    except InputError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_weights_are_refused_before_memory_is_taken(weights, tmp_path):
    "Networks of these parameters have 500 MB and more."
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file, parameters in zip(files, ({"width": 250}, {"width": 8192}, {"hidden": 8192})):
        with_spec(file, weights, model_parameters=parameters)
    done = subprocess.run([sys.executable, "-c", LIMITED, *files], capture_output=True, text=True, check=True)
    *said, taken = done.stdout.splitlines()
    assert [line.split(":")[0] for line in said] == [str(file) for file in files]
    assert int(taken) < 50_000, f"{int(taken) // 1000} MB"  # KiB


# What a training starts from


def test_nothing_is_decoded_for_features_that_cannot_be_used(weights, mock_folder, tmp_path, cli):
    out, diverged = tmp_path / "run", tmp_path / "diverged.safetensors"
    changed(diverged, weights, {VARIANCE: lambda v: v.fill_(-1.0)})
    torch.save(load_file(weights) | {FIRST: torch.full((2, 3, 3, 3), math.inf)}, tmp_path / "infinite.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for file, words in ((diverged, ["running_var", "variances below 0"]), (tmp_path / "infinite.pth", ["NaN or infinite"]),
                        (tmp_path / "text.pth", ["cannot be read as weights"])):
        cli("train", mock_folder, "--out", out, *TINY, "--pretrained", file).refused(file, *words)
    cli("train", mock_folder, "--out", out, *DEEP, "--width", 3, "--pretrained", weights).refused(weights, "has shape")
    cli("train", mock_folder, "--out", out, *TINY, "--optimiser", "lion").refused("no optimiser 'lion'")
    cli("train", mock_folder, "--out", out, *DEEP, "--width", 8192).refused("more than 500,000,000")
    assert not out.exists()


def test_features_whose_header_lacks_a_spec(weights, mock_folder, tmp_path, cli):
    "They fit, so the training goes to its end, and its weights say nothing of where they began."
    file = tmp_path / "w.safetensors"
    save_file(load_file(weights), file, metadata={"gzpaper": json.dumps({"columns": read_header(weights)["columns"]})})
    assert cli("train", mock_folder, "--out", tmp_path / "run", *TINY, "--pretrained", file).code == 0
    assert read_header(tmp_path / "run/weights.safetensors")["begun_as"] is None


def test_a_teacher_is_checked_before_galaxies_are_decoded(mock_folder, tmp_path, cli):
    labels = read_labels_of(mock_folder)
    labels.iloc[:20].to_csv(tmp_path / "few.csv", index=False)
    result = cli("train", mock_folder, "--out", tmp_path / "run", *TINY, "--teacher", tmp_path / "few.csv")
    result.refused("a teacher must have predictions for all training galaxies", "no prediction for GalaxyID")
    assert not (tmp_path / "run").exists()
    labels.to_csv(tmp_path / "all.csv", index=False)
    assert cli("train", mock_folder, "--out", tmp_path / "run", *TINY, "--teacher", tmp_path / "all.csv").code == 0


def read_labels_of(folder: Path):
    from gzpaper.data import read_labels

    table = read_labels(folder / "training_solutions_rev1.csv")
    return predictions_table(table.GalaxyID.to_numpy(), table.drop(columns="GalaxyID").to_numpy())


def test_a_zip_of_tensors_does_not_unfold(tmp_path):
    "torch.save compresses nothing."
    torch.save(vgg7(width=4).state_dict(), tmp_path / "good.pth")
    load_features(vgg7(width=4), "vgg7", tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in good.infolist():
            bomb.writestr(entry.filename, bytes(2**26) if entry.filename.endswith("data/0") else good.read(entry))
    assert_says(refusal(load_features, vgg7(width=4), "vgg7", tmp_path / "bomb.pth"), "bomb.pth", "would unpack to 64 MiB")


# Parameters

PARAMETERS = {  # a file of parameters, and what the message says; None: it is taken
    "epochs: 1.5": ["epochs is 1.5", "whole number"], "epochs: .inf": ["epochs is inf", "whole number"],
    "epochs: .nan": ["epochs is nan", "whole number"], "epochs: true": ["epochs is True", "whole number"],
    "epochs: 1000000000": ["epochs is 1000000000", "at most 100,000"], "epochs: null": ["epochs is None", "whole number"],
    "epochs: 2001-02-03": ["epochs is", "whole number"], f"epochs: 0x{'f' * 5000}": ["epochs is a very large number"],
    "optimiser: [adam]": ["optimiser is ['adam']", "a name"], "optimiser: {a: 1}": ["optimiser is", "a name"],
    "schedule: 3": ["schedule is 3"],
    "precision: true": ["precision is True"], "model: 7": ["model is 7"], "model: [vgg7]": ["model is ['vgg7']"],
    "augment: 3": ["augment is 3", "name: value"], "augment: null": ["augment is None"], "augment: {zoom: true}": ["augment.zoom is True"],
    "augment: {zoom: .nan}": ["augment.zoom is nan"], "augment: {zoom: [1]}": ["augment.zoom is [1]"],
    "augment: {1: 2}": ["augment.1", "choose"], "model_parameters: [1]": ["model_parameters is [1]"],
    "model_parameters: {width: 8.5}": ["width is 8.5", "whole number"], "model_parameters: {width: true}": ["width is True"],
    "model_parameters: {width: 1000000}": ["width is 1000000", "up to 8192"], "model_parameters: {width: []}": ["width is []"],
    "model_parameters: {dropout: abc}": ["dropout is 'abc'", "a number"], "model_parameters: {dropout: .nan}": ["dropout is nan"],
    "model_parameters: {head: null}": ["head is None", "a name"], "model_parameters: {head: [sigmoid]}": ["head is ['sigmoid']"],
    "model_parameters: {batch_norm: 1}": ["batch_norm is 1", "true or false"],
    "model_parameters: {batch_norm: 'no'}": ["batch_norm is 'no'"],
    "seed: 9223372036854775808": ["seed is 9223372036854775808", "at most"], "seed: -1": ["seed is -1", "0 or more"],
    "batch_size: 1000000000": ["batch_size is 1000000000", "at most 100,000"], "size: 100000": ["size is 100000", "at most 2,048"],
    "field: 0.1": ["field 0.1", "px wide", "larger field"], "field: .nan": ["field is nan"], "field: -3": ["field -3"],
    "learning_rate: .nan": ["learning_rate is nan"], "learning_rate: .inf": ["learning_rate is inf"],
    "learning_rate: fast": ["learning_rate is 'fast'", "a number"], "weight_decay: .nan": ["weight_decay is nan"],
    "ema: true": ["ema is True"], "clip: .inf": ["clip is inf"], "folds: 2.5": ["folds is 2.5"], "subset: x": ["subset is 'x'"],
    "patience: [3]": ["patience"], "augment.zoom: 0.5": ["augment.zoom", "after the dot"], "size.x: 3": ["size.x", "after the dot"],
    "epochs: 3\nepochs: 4": ["epochs stands there twice"], "augment: {zoom: 1, zoom: 0.5}": ["zoom stands there twice"],
    "3: 4": ["name: value"], "[]": ["name: value"], "false": ["name: value"], "epochs: *a": ["cannot be read"],
    "epochs: &a 3\nbatch_size: *a": ["*a is an alias"], "when: 2001-99-99": ["cannot be read"], "!!bool x": ["cannot be read"],
    "epochs: !!int x": ["cannot be read"], "[" * 5000: ["cannot be read"], "a: !!python/object:os.system x": ["cannot be read"],
    "epochs: '\x1b'": ["cannot be read"], "# " + "x" * 2**20: ["more than 256 KiB"],
}


@pytest.mark.parametrize("text", PARAMETERS, ids=lambda text: text[:40].replace("\x1b", "ESC"))
def test_parameters_are_refused_by_name(text, mock_folder, tmp_path, cli):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    result = cli("train", mock_folder, "--params", path, "--out", tmp_path / "run", "--device", "cpu")
    result.refused(*PARAMETERS[text])
    assert len(result.lines) == 1 and len(result.err) < 800
    assert not (tmp_path / "run").exists()


def test_what_can_be_read_is_read(tmp_path):
    (tmp_path / "params.yaml").write_text("epochs: 8.0\nlearning_rate: 1e-3\nseed: '12345678901'\nfield: 212\n"
                                          "model_parameters: {width: 8.0}\naugment: {zoom: 5e-1}")
    spec = Spec.from_dict(read_yaml(tmp_path / "params.yaml"))
    assert spec == Spec(epochs=8, learning_rate=0.001, seed=12345678901, model_parameters={"width": 8},
                        augment=spec.augment) and spec.augment.zoom == 0.5
    assert [type(value) for value in (spec.epochs, spec.field, spec.model_parameters["width"])] == [int, float, int]


@pytest.mark.parametrize("values", [None, [], "vgg7", {"model_parameters": None}, {"augment": []}, {1: 2}], ids=str)
def test_a_spec_is_of_names_and_values(values):
    refusal(Spec.from_dict, values)


def test_the_largest_seed_trains(mock_folder, tmp_path, cli):
    assert cli("train", mock_folder, "--out", tmp_path / "run", *TINY, "--seed", 10**12).code == 0


SPACES = {  # what is put into a space, and what the message says
    "model_parameters: {width: {low: 4, high: 100000}}": ["width", "100000", "up to 8192"],
    "model_parameters: {width: {low: 4.5, high: 8}}": ["width", "whole numbers"],
    "model_parameters: {width: [4, abc]}": ["width is 'abc'", "whole number"],
    "model_parameters: {width: [4, 4.0]}": ["width", "two or more different values"],
    "model_parameters: {batch_norm: [true, 1]}": ["batch_norm is 1", "true or false"],
    "model_parameters: {head: [sigmoid, 3]}": ["head is 3"],
    "learning_rate: [0.1, .nan]": ["learning_rate is nan"], "learning_rate: {low: 0.1, high: .inf}": ["low has to be a number"],
    "learning_rate: {low: true, high: 2}": ["low has to be a number"], "learning_rate: {low: 0.1, high: 1, log: maybe}": ["log is 'maybe'"],
    f"weight_decay: {{low: 0, high: 0x{'f' * 400}}}": ["weight_decay", "low has to be a number"],
    "optimiser: [adam, [adamw]]": ["optimiser", "a choice takes"], "augment: {zoom: [0.5, true]}": ["augment.zoom is True"],
    "epochs: .inf": ["epochs is inf"], "epochs: 1.5": ["epochs is 1.5"], "full_epochs: true": ["full_epochs is True"],
    "full_epochs: 1000000": ["epochs is 1000000", "at most"], "batch_size: [8, 1000000]": ["batch_size is 1000000"],
    "ema: [0.9, 0.99]\nema: [0.5, 0.6]": ["ema stands there twice"], "augment: 3": ["augment is 3"],
    "galaxies: {low: 1, high: 2}": ["no training parameter 'galaxies'", "subset"], "patience: [0, 1]": ["no training parameter 'patience'"],
    "augment: {zoom: [1, 2], width: [1, 2]}": ["no training parameter 'augment.width'"],
    "learning_rate: {low: 0.1, high: 0.1}": ["low has to be a number below high"],
    "learning_rate: {low: 0, high: 1, log: true}": ["above 0"],
    "accumulate: {low: 1, high: 4, step: 0}": ["step is 0", "above 0"],
    "learning_rate: {low: 0.1, high: 0.2, step: 3}": ["step is 3", "range"],
    "optimiser: [[adam]]": ["a choice takes"], "learning_rate: {low: [0.1], high: 1}": ["low has to be a number"],
}


@pytest.mark.parametrize("text", SPACES, ids=lambda text: text[:40])
def test_a_search_space_is_refused_by_name(text, tmp_path):
    pytest.importorskip("optuna", reason="searches need Optuna: install gzpaper[paper]")
    from gzpaper.space import read_space

    path, name = tmp_path / "space.yaml", text.split(":")[0]
    lines = [line for line in ("size: 32", "epochs: 2", "full_epochs: 3", "batch_size: [8, 16]") if not line.startswith(f"{name}:")]
    path.write_text("\n".join(lines))
    if name != "batch_size":
        assert name in ("epochs", "full_epochs") or read_space(path)
    path.write_text("\n".join([*lines, text]))
    assert_says(refusal(read_space, path), path, *SPACES[text])


def test_choices_and_epochs_have_their_types(tmp_path):
    pytest.importorskip("optuna", reason="searches need Optuna: install gzpaper[paper]")
    from gzpaper.space import read_space

    (tmp_path / "space.yaml").write_text("size: 32\nepochs: 2.0\nfull_epochs: 3\nlearning_rate: [1e-3, 0.01]\nbatch_size: [8.0, 16]")
    space = read_space(tmp_path / "space.yaml")
    assert (space.fixed["epochs"], space.full_epochs) == (2, 3)
    assert space.searched["learning_rate"].choices == (0.001, 0.01) and space.searched["batch_size"].choices == (8, 16)
    assert {type(value) for value in (space.fixed["epochs"], *space.searched["batch_size"].choices)} == {int}


# Files that unfold


def test_yaml_does_not_unfold(tmp_path):
    "Ten levels of ten aliases stand for 10,000,000,000 values."
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11))
    (tmp_path / "bomb.yaml").write_text(bomb)
    assert_says(refusal(read_yaml, tmp_path / "bomb.yaml"), "bomb.yaml", "*a0 is an alias", "write the value itself")


def test_a_large_or_strange_file_of_yaml_is_not_read(tmp_path):
    with open(tmp_path / "large.yaml", "wb") as file:
        file.truncate(300 * 2**20)
    os.mkfifo(tmp_path / "pipe.yaml")
    assert_says(refusal(read_yaml, tmp_path / "large.yaml"), "large.yaml", "more than 256 KiB")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path, tmp_path / "none.yaml"):
        assert_says(refusal(read_yaml, path), path, "missing, or not a file")


def zipped(path: Path, name: str, size: int, method: int = zipfile.ZIP_DEFLATED, said: int | None = None) -> Path:
    "A zip of one file of zeros, which may say another size than it has."
    with zipfile.ZipFile(path, "w", method) as file, file.open(name, "w") as entry:
        for _ in range(size // 2**20):
            entry.write(bytes(2**20))
    if said is not None:
        data = bytearray(path.read_bytes())
        for at in (22, data.rfind(b"PK\1\2") + 24):
            data[at : at + 4] = struct.pack("<I", said)
        path.write_bytes(data)
    return path


def read_images(path: Path):
    images = Images(path, READABLE)
    decode(images.read(0), images.where(0))


@pytest.mark.parametrize("read, name", [(read_table, "t.csv"), (read_images, "1.jpg"), (read_images, "1.fits")])
def test_a_zip_does_not_unfold(read, name, tmp_path):
    "Nor does one that says that it is small, or that is packed in a way of which one byte can become millions."
    with limited(2**27):
        assert_says(refusal(read, zipped(tmp_path / "a.zip", name, 2**28)), name, "256 MiB", "128")
        assert_says(refusal(read, zipped(tmp_path / "b.zip", name, 2**28, said=1000)), name, "fetch it again")
        assert_says(refusal(read, zipped(tmp_path / "c.zip", name, 2**20, zipfile.ZIP_BZIP2, said=1000)), name, "method 12", "deflate")


def test_an_image_of_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "1.png", "wb") as file:
        file.truncate(2**32)
    assert_says(refusal(Images, tmp_path, READABLE), "1.png has 4,096 MiB", "128", "smaller stamp")


def test_a_parquet_file_does_not_unfold(tmp_path):
    pd.DataFrame({name: np.zeros(10**6, np.int8) for name in ("GalaxyID", *COLUMNS)}).to_parquet(tmp_path / "t.parquet")
    assert_says(refusal(read_table, tmp_path / "t.parquet"), "1,000,000 rows", "more than it has bytes")


# A disk that says no


def write(path: Path, text: str = "new"):
    with atomic(path) as partial:
        partial.write_text(text)


REMEDIES = {errno.ENOSPC: "Free some space", errno.EDQUOT: "Free some space", errno.EACCES: "Allow writing there",
            errno.EROFS: "Allow writing there", errno.EIO: "whether its disk is there", errno.ESTALE: "whether its disk is there",
            errno.ENOTCONN: "whether its disk is there", errno.ENAMETOOLONG: "Name another place"}


@pytest.mark.parametrize("number", REMEDIES, ids=errno.errorcode.get)
def test_the_remedy_fits_the_error(number, tmp_path, monkeypatch):
    "While the file is written, moved into place, and when nothing works any more."
    def no(*arguments, **options):
        raise OSError(number, os.strerror(number))

    words = tmp_path / "a.csv", "cannot be written", os.strerror(number), REMEDIES[number], "name another place"
    for patched in ("os.replace", "pathlib.Path.write_text", "pathlib.Path.mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(patched, no)
            patch.setattr("pathlib.Path.unlink", no)
            said = refusal(write, tmp_path / "a.csv")
        assert_says(said, *words)
        assert REMEDIES[number].startswith("Free") == ("Free some space" in said)
    monkeypatch.setattr("gzpaper.files.TemporaryFile", no)
    assert_says(refusal(check_output, tmp_path / "a.csv", ".csv"), *words)


def test_a_place_that_goes_while_it_is_written_to(tmp_path):
    place = tmp_path / "mount"
    with pytest.raises(InputError, match="a.csv cannot be written: No such file"), atomic(place / "a.csv") as partial:
        shutil.rmtree(place)
        partial.write_text("too late")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    for call in (lambda: write(tmp_path / "closed/a.csv"), lambda: exclusive(tmp_path / "closed/a.csv").__enter__(),
                 lambda: check_output(tmp_path / "closed/a.csv", ".csv")):
        assert_says(refusal(call), "closed/a.csv cannot be written", "Allow writing there or name another place")


WRITER = """
import sys, time
from gzpaper.files import atomic
with atomic(sys.argv[1]) as partial:
    partial.mkdir() if sys.argv[2] == "folder" else partial.write_text("half")
    print(flush=True)
    sys.stdin.readline()
"""


def writer(path: Path, kind: str) -> subprocess.Popen:
    "A process that is at work on a file or a folder until it is told to end."
    process = subprocess.Popen([sys.executable, "-c", WRITER, path, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    return process


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_partial_names_are_not_shared(kind, tmp_path):
    "Each of two at once finishes its own; what a killed one has left goes, what others have made stays."
    path, foreign = tmp_path / "a", [".a.partial", ".a.partial.csv", ".a.0-1-0.partial", ".ab.partial", ".a.ffffff-999999-01234567.partial"]
    for name in foreign:
        (tmp_path / name).write_text("not ours")
    killed, running = writer(path, kind), writer(path, kind)
    killed.kill()
    killed.wait()
    assert len(list(tmp_path.iterdir())) == len(foreign) + 2
    write(path)
    left = {p.name for p in tmp_path.iterdir()} - {*foreign, "a"}
    assert len(left) == 1 and str(running.pid) in left.pop() and path.read_text() == "new"
    if kind == "folder":
        path.unlink()
    running.communicate("\n")
    assert running.returncode == 0 and path.is_dir() == (kind == "folder")
    assert {p.name for p in tmp_path.iterdir()} == {*foreign, "a"} and all((tmp_path / n).read_text() == "not ours" for n in foreign)


SWAP = """
import os, signal, sys
import gzpaper.files
replace = os.replace
def killed(a, b):
    replace(a, b)
    os.kill(os.getpid(), signal.SIGKILL)
gzpaper.files.os.replace = killed
gzpaper.files._exchanged = lambda *names: False  # as where the system cannot do this in one step
with gzpaper.files.atomic(sys.argv[1]) as partial:
    partial.mkdir()
"""


def test_a_folder_comes_back_if_its_writer_was_killed_between_two_renames(tmp_path, monkeypatch):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "numbers.json").write_text("1")
    assert subprocess.run([sys.executable, "-c", SWAP, folder]).returncode < 0
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), atomic(folder):
        raise KeyboardInterrupt
    assert (folder / "numbers.json").read_text() == "1" and list(tmp_path.iterdir()) == [folder]
    monkeypatch.setattr("gzpaper.files._exchanged", lambda *names: False)
    monkeypatch.setattr("os.replace", fails_once(os.replace, at=2))
    with pytest.raises(InputError), atomic(folder) as partial:
        partial.mkdir()
    assert (folder / "numbers.json").read_text() == "1" and list(tmp_path.iterdir()) == [folder]


def fails_once(act, at: int):
    "A function that fails when it is called for the n-th time."
    calls = []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return act(*arguments)

    return call


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        said = refusal(write, path, "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_says(said, "Free some space")
    assert path.read_text() == "old"
    assert_whole(tmp_path)


def test_networks_have_a_limit():
    assert outlined("vgg7", 64, {"width": 64}).features[0][0].weight.is_meta
    assert_says(refusal(outlined, "vgg7", 64, {"width": 2000}), "vgg7 of 64 px", "width 2000", "ask for a smaller one")


# Storages

ADDRESSES = ["postgresql://u:{}@127.0.0.1:1/db", "postgresql:////u:{}@127.0.0.1:1/db", "postgresql:///u:{}@127.0.0.1:1/db",
             "postgresql:/u:{}@h/db", "postgresql:u:{}@h/db", "postgresql//u:{}@h/study.db", "postgresql://u:{}", "u:{}@127.0.0.1:1/db",
             "postgresql://u/v:{}@127.0.0.1:1/db",
             "postgresql:///db?user=u&password={}", "host=127.0.0.1 user=u password={} dbname=db", "postgresql://u:{}@", "postgresql://u:a@{}@h/db",
             "postgresql://u:a/{}@127.0.0.1:1/db", "postgresql://u:a?{}@127.0.0.1:1/db", "postgresql://u:{}\n@127.0.0.1:1/db",
             "sqlite:///u:{}@h/none/study.db", "POSTGRESQL://u:{}@127.0.0.1:1/db", "postgresql ://u:{}@127.0.0.1:1/db", "://u:{}@h"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_password_is_never_shown(address, tmp_path, monkeypatch, cli):
    pytest.importorskip("optuna", reason="searches need Optuna: install gzpaper[paper]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for password in ("s3cr3tw0rd", "s3cr3tw0rd/%2f//x", "s3cr3tw0rd\x1b[31m"):
        result = cli("tune", "status", "--storage", address.format(password))
        assert result.code == 1 and len(result.lines) == 1, result
        assert "s3cr3tw0rd" not in result.err and "\x1b" not in result.err, result
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed, words", [(-1, "0 or more"), (2**63, "at most"), (10**13, "at most"), (10**12, "")])
def test_seeds_of_a_search(seed, words, mock_folder, tmp_path, cli):
    pytest.importorskip("optuna", reason="searches need Optuna: install gzpaper[paper]")
    space = tmp_path / "space.yaml"
    space.write_text("size: 32\nepochs: 1\nfull_epochs: 1\nmodel_parameters: {width: 2}\nbatch_size: [8, 12]")
    result = cli("tune", "--data", mock_folder, "--space", space, "--out", tmp_path / "tune", "--validation", 8, "--test", 8, "--trials", 1,
                 "--rounds", 0, "--device", "cpu", "--seed", seed)
    result.refused(f"seed is {seed}", words) if words else None
    assert result.code == bool(words), result
