"""Every reader with damaged and made-up files: read, or refused in one line, within 1.5 GB and 20 s. In full: `make fuzz`."""

import csv
import gzip
import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import limited, write_untrained
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save
from test_names import table_of
from test_pictures import LIGHT, cube, fits, three, tiles

import gzpaper.chain
from gzpaper.catalogue import _part_of, check_submission
from gzpaper.data import read_labels, read_table
from gzpaper.decoding import decode
from gzpaper.files import read_yaml
from gzpaper.images import Images
from gzpaper.models import read_features, vgg7
from gzpaper.paper import read_chain, read_networks, root
from gzpaper.predict import READABLE
from gzpaper.scores import read_scorable
from gzpaper.spec import Spec, flattened, nested
from gzpaper.tree import COLUMNS, InputError, printable
from gzpaper.weights import _read_scores, load_weights, read_header

space, study, tune = (pytest.importorskip(f"gzpaper.{name}", reason="searches need Optuna") for name in ("space", "study", "tune"))
MEMORY = 1.5e9  # bytes, beyond what Python and torch have taken before
NO_NUMBER = {"", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "-nan", "NULL", "null", "None", "<NA>"}


def assert_read_or_refused(read: Callable[[Path], object], path: Path):
    "All other exceptions go through, and fail the test; so does a CSV table that is not read as Python's csv module reads it."
    try:
        with limited(MEMORY):
            found = read(path)
    except InputError as error:
        assert str(error) == printable(str(error)) and 0 < len(str(error)) < 1500
    else:
        if read is read_table and path.suffix == ".csv":
            assert_as_csv_has_it(found, path)


def assert_as_csv_has_it(table: pd.DataFrame, path: Path):
    "An independent reading: each GalaxyID with its 37 numbers."
    with open(path, encoding="utf-8-sig", newline="") as file:
        header, *rows = [row for row in csv.reader(file) if row]
    wanted = {}
    for cells in rows:
        row = dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
        name = row["GalaxyID"]
        quoted = name.startswith("'") and name.lstrip("'").startswith(("=", "+", "@", "-"))  # as it is for spreadsheets
        assert wanted.setdefault(name[1:] if quoted else name, row) is row, f"{name} twice"
    assert [str(name) for name in sorted(table.GalaxyID)] == [str(name) for name in table.GalaxyID]
    assert {str(name) for name in table.GalaxyID} == {*wanted} and len(table) == len(wanted)
    each = map(wanted.get, table.GalaxyID.astype(str))
    numbers = [[np.nan if row[column] in NO_NUMBER else float(row[column]) for column in COLUMNS] for row in each]
    np.testing.assert_allclose(table[COLUMNS].to_numpy(float), numbers, rtol=1e-12, equal_nan=True)


# What a file can suffer

NUMBERS = [b"0", b"-1", b"1e999", b"nan", b"inf", b"0.5", b"-0", b"2147483648", b"9223372036854775808", b"99999999999999999999999", b"1e9",
           b"null", b"true", b"[]", b"{}", b'""', b"[" * 200]
WORDS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\1\0", b"\1\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xfe", b"\xef\xbb\xbf",
         b"\r\n", b"\0", b'"', b",", b";", b"\x1b[31m", b"=1+1", b"\n\n"]


@st.composite
def damaged(draw, files: list[bytes]) -> bytes:
    "One of some files, after a few accidents."
    data = draw(st.sampled_from(files))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        at = draw(st.sampled_from([at, at % 512]))  # headers lie at the beginning
        n = draw(st.sampled_from([1, 1, 2, 4, 8, 80, 512, 2880]))
        accident = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "word", "number", "splice"]))
        if accident == "flip":
            data = data[:at] + draw(st.binary(min_size=n % 9, max_size=n % 9)) + data[at + n % 9 :]
        elif accident == "cut":
            data = data[:at]
        elif accident == "drop":
            data = data[:at] + data[at + n :]
        elif accident == "repeat":
            data = data[:at] + data[at : at + n] * 2 + data[at + n :]
        elif accident == "word":
            word = draw(st.sampled_from(WORDS))
            data = data[:at] + word + data[at + len(word) * draw(st.booleans()) :]
        elif accident == "number":
            data = with_number(data, at, draw(st.sampled_from(NUMBERS)), same_length=draw(st.booleans()))
        else:
            other = draw(st.sampled_from(files))
            data = data[:at] + other[draw(st.integers(0, len(other))) :]
    return data


def with_number(data: bytes, at: int, number: bytes, same_length: bool) -> bytes:
    "Data whose next digits are another number."
    start = next((i for i in range(at, min(at + 4000, len(data))) if data[i : i + 1].isdigit()), None)
    if start is None:
        return data
    end = next((i for i in range(start, len(data)) if not data[i : i + 1].isdigit()), len(data))
    if same_length:
        number, end = number[:80], start + len(number[:80])
    return data[:start] + number + data[end:]


def with_checksums(data: bytes) -> bytes:
    "A PNG whose chunks have the right checksums, so that more of it is read."
    fixed, at = data[:8], 8
    while at + 8 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 8 + length]
        fixed += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return fixed + data[at:]


# The readers, and good files for each


@dataclass(frozen=True)
class Reader:
    "How a file is read."
    read: Callable[[Path], object]
    end: str  # of the file's name
    good: Callable[[], list[bytes]]
    wrap: Callable[[bytes], bytes] = bytes  # after the damage


def of(write: Callable[[Path], object], end: str) -> bytes:
    "What a function writes to a file."
    with TemporaryDirectory() as folder:
        write(Path(folder) / f"a{end}")
        return (Path(folder) / f"a{end}").read_bytes()


def tables(end: str) -> list[bytes]:
    return [of(lambda path, ids=ids: write_table(table_of(*ids), path), end) for ids in ((1, 2, 30), ("a", "0b"))]


def write_table(table: pd.DataFrame, path: Path):
    table.to_parquet(path, compression=None) if path.suffix == ".parquet" else table.to_csv(path, index=False)


def zipped(data: bytes, name: str = "a.csv", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", method) as archive:
        archive.writestr(name, data)
    return file.getvalue()


PICTURE = np.clip(LIGHT.transpose(1, 2, 0) * 120 + 20, 0, 255).astype(np.uint8)


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    Image.fromarray(PICTURE).convert(mode).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def pngs() -> list[bytes]:
    deep = struct.pack(">IIBBBBB", 240, 240, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in PICTURE)
    chunks = [(b"IHDR", deep), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    sixteen = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return [encoded("PNG"), encoded("PNG", "P"), encoded("PNG", "RGBA"), sixteen]


def jpegs() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return [encoded("JPEG"), encoded("JPEG", progressive=True), encoded("JPEG", "CMYK"), encoded("JPEG", exif=exif)]


def fits_files() -> list[bytes]:
    scaled = fits.PrimaryHDU((LIGHT * 1000).astype(np.int16))
    scaled.header["BSCALE"] = 0.001
    file = io.BytesIO()
    scaled.writeto(file)
    return [cube(BANDS="gri"), three([{"EXTNAME": b} for b in "gri"]), cube(np.moveaxis(LIGHT, 0, 2)), file.getvalue()]


def small_weights() -> bytes:
    return of(write_untrained, ".safetensors")


def torch_saved() -> list[bytes]:
    state = vgg7(width=2).state_dict()
    return [of(lambda path, z=z: torch.save(state, path, _use_new_zipfile_serialization=z), ".pt") for z in (True, False)]


def journal() -> bytes:
    "A study with a few trials."
    def write(path: Path):
        (path.parent / "s.yaml").write_text("size: 32\nepochs: 5\nfull_epochs: 6\nlearning_rate: {low: 0.001, high: 0.1}")
        searched = space.parse_space(path.parent / "s.yaml")
        found = study.open_study("s", searched, study.open_storage(str(path)))
        for value in (0.1, 0.2):
            trial = found.ask()
            study.suggest(trial, searched)
            trial.set_user_attr("epochs", 5)
            trial.set_user_attr("seconds", 1.0)
            trial.report(value, 5)
            found.tell(trial, value)

    return of(write, ".journal")


def read_study(path: Path):
    found = study.take_study(study.open_storage(str(path)))
    tune.status(found, path.parent / "runs")
    study.trial_table(found)
    study.rounds_of(found)


def read_images(path: Path):
    images = Images(path, READABLE, skip_bad=True)
    for i in range(len(images)):
        decode(images.read(i), images.where(i))


def image_zips() -> list[bytes]:
    return [zipped(encoded("JPEG"), "1.jpg", zipfile.ZIP_STORED), zipped(cube(), "a/2.fits"), zipped(encoded("PNG"), "b\\3.png")]


@cache
def copied() -> TemporaryDirectory:  # it lives as long as this process
    "A copy of what the readers need of this repository."
    folder = TemporaryDirectory(ignore_cleanup_errors=True)
    shutil.copytree(root() / "paper", Path(folder.name) / "paper", ignore=shutil.ignore_patterns("notebooks", "runs", "*.pdf"))
    (Path(folder.name) / "nbs").symlink_to(root() / "nbs")
    return folder


DECLARED = cache(gzpaper.chain._declared)  # the notebooks stay as they are


@contextmanager
def repository(name: str, path: Path) -> Iterator[None]:
    "A repository of which one file is another."
    folder, own = Path(copied().name), (root() / "paper" / name).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("chain", "paper"):
            patch.setattr(f"gzpaper.{module}.root", lambda: folder)
        patch.setattr(gzpaper.chain, "_declared", DECLARED)
        shutil.copy(path, folder / "paper" / name)
        try:
            yield
        finally:
            (folder / "paper" / name).write_bytes(own)


def read_in_repository(name: str, read: Callable[[], object]) -> Callable[[Path], object]:
    def read_one(path: Path):
        with repository(name, path):
            read()

    return read_one


def read_params(path: Path):
    Spec.from_dict(nested(flattened(read_yaml(path))))


def own(path: str) -> Callable[[], list[bytes]]:
    return lambda: [file.read_bytes() for file in sorted(root().glob(path))]


def submit(path: Path):
    with TemporaryDirectory() as folder:
        like = Path(folder) / "like.csv"
        like.write_bytes(tables_once(".csv")[0])
        check_submission(path, like)


tables_once = cache(tables)
PART = json.dumps({"about": {"weights": ["a"], "rotations": 1}, "images": "b", "bad": [[1, "is empty"]]})
READERS = {
    "a table": Reader(read_table, ".csv", lambda: tables(".csv")),
    "a table in a zip": Reader(read_table, ".zip", lambda: [zipped(table) for table in tables(".csv")]),
    "a damaged table in a zip": Reader(read_table, ".zip", lambda: tables(".csv"), zipped),
    "Parquet": Reader(read_table, ".parquet", lambda: tables(".parquet")),
    "labels": Reader(read_labels, ".csv", lambda: tables(".csv")),
    "predictions to score": Reader(read_scorable, ".csv", lambda: tables(".csv")),
    "a submission": Reader(submit, ".csv", lambda: tables(".csv")),
    "a submission in a zip": Reader(submit, ".zip", lambda: tables(".csv"), zipped),
    "JPEG": Reader(lambda path: decode(path.read_bytes(), str(path)), ".jpg", jpegs),
    "PNG": Reader(lambda path: decode(path.read_bytes(), str(path)), ".png", pngs),
    "PNG with checksums": Reader(lambda path: decode(path.read_bytes(), str(path)), ".png", pngs, with_checksums),
    "FITS": Reader(lambda path: decode(path.read_bytes(), str(path)), ".fits", fits_files),
    "FITS in gzip": Reader(lambda path: decode(path.read_bytes(), str(path)), ".fits.gz", lambda: [gzip.compress(f) for f in fits_files()]),
    "tiled FITS": Reader(lambda path: decode(path.read_bytes(), str(path)), ".fits.fz",
                         lambda: [tiles(), tiles(kind="GZIP_1"), tiles(kind="GZIP_2"), tiles(kind="HCOMPRESS_1")]),
    "images in a zip": Reader(read_images, ".zip", image_zips),
    "a part": Reader(_part_of, ".safetensors", lambda: [save({"values": torch.zeros(2, 74)}, {"gzpaper": PART})]),
    "weights": Reader(load_weights, ".safetensors", lambda: [small_weights()]),
    "features": Reader(lambda path: read_features(vgg7(width=2), "vgg7", path), ".safetensors", lambda: [small_weights()]),
    "torch.save": Reader(lambda path: read_features(vgg7(width=2), "vgg7", path), ".pt", torch_saved),
    "scores": Reader(_read_scores, ".json", lambda: [b'{"RMSE": 0.1, "profile": "a", "twins": {"a": 1}}', b'{"RMSE": 0.1}']),
    "parameters": Reader(read_params, ".yaml", own("paper/params/*.yaml")),
    "a search space": Reader(space.parse_space, ".yaml", own("paper/search/*.yaml")),
    "the networks": Reader(read_in_repository("networks.yaml", lambda: read_networks("smoke")), ".yaml", own("paper/networks.yaml")),
    "the chain": Reader(read_in_repository("chain.yaml", read_chain), ".yaml", own("paper/chain.yaml")),
    "a profile": Reader(read_in_repository("profiles/smoke.yaml", lambda: gzpaper.chain.read_profile("smoke")), ".yaml",
                        own("paper/profiles/*.yaml")),
    "a study": Reader(read_study, ".journal", lambda: [journal()]),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    reader = READERS[name]
    path, files = tmp_path / f"1{reader.end}", reader.good()

    @given(damaged(files))
    def check(data: bytes):
        path.write_bytes(reader.wrap(data))
        assert_read_or_refused(reader.read, path)

    check()


# What is well formed, and makes no sense

words = st.sampled_from(["", "NA", "1e5", "nan", "inf", "1,5", "'=1+1", "=1+1", "\x1b[31m", "é", "1" * 25, "0123", "-1", "1.0", " 3"])
plain = st.none() | st.booleans() | st.integers() | st.floats() | words | st.sampled_from([10**30, 2**63, 1e-320])
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8)


@st.composite
def changed(draw, told: dict) -> dict:
    "What a file tells, with other values here and there."
    told, (name, value) = dict(told), draw(st.tuples(st.sampled_from([*told, "other"]), values))
    inner = told.get(name)
    told[name] = draw(changed(inner)) if isinstance(inner, dict) and inner and draw(st.booleans()) else value
    return draw(changed(told)) if draw(st.integers(0, 2)) == 0 else told


@pytest.mark.parametrize("name", ["parameters", "a search space", "a profile"])
def test_made_up_yaml(name, tmp_path):
    reader, path = READERS[name], tmp_path / "1.yaml"
    good = yaml.safe_load(reader.good()[0])

    @given(changed(good))
    def check(told: dict):
        path.write_text(yaml.safe_dump(told, allow_unicode=True), encoding="utf-8", errors="surrogateescape")
        assert_read_or_refused(reader.read, path)

    check()


def test_made_up_headers_of_weights(tmp_path):
    path = write_untrained(tmp_path / "w.safetensors")
    about, tensors = read_header(path), load_file(path)

    @given(changed(about))
    def check(told: dict):
        path.write_bytes(save(tensors, metadata={"gzpaper": json.dumps(told)}))
        assert_read_or_refused(load_weights, path)

    check()


@st.composite
def made_up_table(draw) -> bytes:
    "A CSV file whose cells, separators, quotes, line ends and encoding may be others."
    table = table_of(1, 2, 30).astype(str)
    for _ in range(draw(st.integers(0, 5))):
        column = draw(st.sampled_from(["GalaxyID", *COLUMNS[:3]]))
        table.loc[draw(st.integers(0, 2)), column] = draw(words | st.text(max_size=3))
    text = table.to_csv(index=draw(st.sampled_from([False, False, True])), sep=draw(st.sampled_from(",,,;\t")),
                        lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"])), quoting=draw(st.sampled_from([0, 1])))
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252"])), errors="replace")


@given(made_up_table())
def test_made_up_tables(tmp_path_factory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "made_up.csv"
    path.write_bytes(data)
    assert_read_or_refused(read_table, path)


@st.composite
def made_up_cards(draw) -> dict:
    "Cards of a FITS header."
    card = st.sampled_from(["BUNIT", "BSCALE", "BZERO", "FILTER", "BANDS", "BAND1", "OBJECT", "CTYPE3", "CUNIT3", "CRVAL3", "CDELT3",
                            "CRPIX3", "CD3_3"])
    said = st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
    said |= st.sampled_from(["gri", "irg", "g r i", "WAVE", "FREQ", "nm", "Hz", "furlong", "mask", "", "nanomaggy", "Jy"])
    return draw(st.dictionaries(card, said, max_size=5))


@given(made_up_cards())
def test_made_up_fits(tmp_path_factory, cards: dict):
    path = tmp_path_factory.getbasetemp() / "made_up.fits"
    path.write_bytes(cube(**cards))
    assert_read_or_refused(READERS["FITS"].read, path)


@given(st.lists(st.text(min_size=1, max_size=8) | words, max_size=4), st.sampled_from([".jpg", ".PNG", ".fits.gz", "/1.jpg", ""]))
def test_made_up_names_in_a_zip(tmp_path_factory, names: list[str], end: str):
    path = tmp_path_factory.getbasetemp() / "made_up.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(f"{name.encode('utf-8', 'replace').decode()}{end}"), encoded("JPEG"))
    assert_read_or_refused(read_images, path)
