"""FITS files and pictures, right or refused: which plane is which band, in what unit, how large, and whether there is a galaxy at all."""

import gzip
import io
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from conftest import limited
from PIL import Image

from gzpaper.decoding import CROP, KINDS, decode, split_name
from gzpaper.images import Images
from gzpaper.predict import READABLE
from gzpaper.tree import InputError

fits = pytest.importorskip("astropy.io.fits")
y, x = np.mgrid[:240, :240] - 119.5
LIGHT = np.exp(-np.hypot(x, 2 * y) / 20)[None] * np.array([0.5, 1.5, 3])[:, None, None]  # g, r and i, in nanomaggies a pixel
LIGHT = (LIGHT + np.random.default_rng(0).normal(0, 0.005, LIGHT.shape)).astype(np.float32)
ORDER = [2, 1, 0]  # i, r, g


def file_of(*units) -> bytes:
    fits.HDUList(list(units)).writeto(file := io.BytesIO())
    return file.getvalue()


def cube(light: np.ndarray = LIGHT, **cards) -> bytes:
    return file_of(fits.PrimaryHDU(light, fits.Header(cards)))


def three(cards: list[dict], light: np.ndarray = LIGHT) -> bytes:
    "An empty primary and one image for each set of cards."
    return file_of(fits.PrimaryHDU(), *(fits.ImageHDU(light[n % 3], fits.Header(c)) for n, c in enumerate(cards)))


def picture(light: np.ndarray = LIGHT) -> np.ndarray:
    return decode(cube(light), "1.fits")


def assert_refused(data: bytes, name: str, *words: str):
    with pytest.raises(InputError) as error:
        decode(data, name)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


# Which plane is which band

IRG = LIGHT[ORDER]
WAVES = {"CTYPE3": "WAVE", "CRPIX3": 1.0}
NAMED = {
    "EXTNAME": three([{"EXTNAME": b} for b in "IRG"], IRG),
    "EXTNAME of a pipeline": three([{"EXTNAME": f"SCI_{b}"} for b in "irg"], IRG),
    "FILTER": three([{"FILTER": b} for b in "irg"], IRG),
    "FILTER of SDSS": three([{"FILTER": f"SDSS {b}"} for b in "irg"], IRG),
    "FILTER of DECam": three([{"FILTER": f"{b} DECam SDSS c0002 6415.0 1480.0"} for b in "irg"], IRG),
    "BAND, the name says nothing": three([{"BAND": b, "EXTNAME": "SCI"} for b in "irg"], IRG),
    "BANDS": cube(IRG, BANDS="irg"),
    "BANDS with commas": cube(IRG, BANDS="i, r, g"),
    "FILTERS": cube(IRG, FILTERS="I R G"),
    "BAND0": cube(IRG, BAND0="i", BAND1="r", BAND2="g"),
    "BAND1": cube(IRG, BAND1="i", BAND2="r", BAND3="g"),
    "planes last": cube(np.moveaxis(IRG, 0, 2), BANDS="irg"),
    "wavelength": cube(IRG, **WAVES, CUNIT3="nm", CRVAL3=763.0, CDELT3=-143.0),
    "wavelength in m": cube(IRG, **WAVES, CRVAL3=7.63e-7, CDELT3=-1.43e-7),
    "wavelength in Angstrom": cube(LIGHT, **WAVES, CUNIT3="Angstrom", CRVAL3=4770.0, CD3_3=1430.0),
    "frequency": cube(IRG, CTYPE3="FREQ", CRPIX3=1.0, CRVAL3=3.93e14, CDELT3=0.95e14),
    "five bands": three([{"EXTNAME": b} for b in "zirgu"], np.stack([LIGHT[n] for n in (2, 1, 0)])[[2, 0, 1]]),
    "a mask beside them": three([*({"EXTNAME": b} for b in "IRG"), {"EXTNAME": "MASK"}], IRG),
    "no names": three([{}] * 3),
    "no names, in a cube of a galaxy": cube(OBJECT="NGC 12", EXTNAME="NGC 12"),
}


@pytest.mark.parametrize("how", NAMED)
def test_bands_are_found(how):
    np.testing.assert_array_equal(decode(NAMED[how], "1.fits"), picture())


NO_BANDS = {
    "GALFIT": (three([{"OBJECT": "J1_g.fits[1:240,1:240]"}, {"OBJECT": "model"}, {"OBJECT": "residual map"}]), "residual map"),
    "GALFIT's cards": (three([{}, {"CHI2NU": 1.1}, {}]), "GALFIT's model"),
    "image, weight, mask": (three([{"EXTNAME": "SCI"}, {"EXTNAME": "WEIGHT"}, {"EXTNAME": "MASK"}]), "WEIGHT"),
    "weights of the bands": (three([{"EXTNAME": f"IVAR_{b}"} for b in "GRI"]), "IVAR_G"),
    "segmentation": (three([{"EXTNAME": "image"}, {"EXTNAME": "segmentation"}, {"EXTNAME": "bkg"}]), "segmentation"),
    "a cube of models": (cube(BANDS="gri", IMTYPE="model"), "model"),
    "z for i": (three([{"EXTNAME": b} for b in "GRZ"]), "(g, r, z)"),
    "z for i in a cube": (cube(BANDS="grz", BAND0="g", BAND1="r", BAND2="z"), "(g, r, z)"),
    "Hubble's": (three([{"FILTER": f} for f in ("F475W", "F625W", "F814W")]), "F814W"),
    "one band three times": (three([{"FILTER": "r"}] * 3), "(r, r, r)"),
    "epochs of one band": (cube(FILTER="r"), "(r, r, r)"),
    "cards that disagree": (three([{"EXTNAME": "G", "FILTER": "i"}, {"FILTER": "r"}, {"FILTER": "g"}]), "g or i"),
    "some names, in another order": (three([{}, {"EXTNAME": "R"}, {"EXTNAME": "G"}]), "(no name, r, g)"),
    "polarisation": (cube(CTYPE3="STOKES", CRVAL3=1.0), "STOKES"),
    "velocities": (cube(CTYPE3="VRAD", CRVAL3=1.0, CUNIT3="km/s"), "VRAD"),
    "far infrared": (cube(**WAVES, CUNIT3="um", CRVAL3=100.0, CDELT3=60.0), "nm"),
    "a unit that is none": (cube(**WAVES, CUNIT3="parrot", CRVAL3=100.0, CDELT3=60.0), "WAVE"),
    "two cubes": (file_of(fits.PrimaryHDU(LIGHT), fits.ImageHDU(LIGHT)), "[3, 240, 240], "),
}


@pytest.mark.parametrize("what", NO_BANDS)
def test_what_is_no_band_is_refused(what):
    data, word = NO_BANDS[what]
    assert_refused(data, "1.fits", word, "named g, r and i")


# In what unit


@pytest.mark.parametrize("factor", [1e-9, 1e-6, 3.6e-6, 1e-3, 300, 5000, 1e9])
def test_light_in_another_unit_is_refused(factor):
    assert_refused(cube(factor * LIGHT), "1.fits", "nanomaggies", "uniform" if factor < 1 else "white")


@pytest.mark.parametrize("empty", ["g", "i", "gri"])
@pytest.mark.parametrize("value", [0, -99])
def test_a_band_outside_of_the_survey_is_refused(value, empty):
    light = LIGHT.copy()
    light[["gri".index(letter) for letter in empty]] = value
    assert_refused(cube(light), "1.fits", f"nothing in band {empty[0]}", "fetch it again")


def test_a_saturated_image_is_refused():
    assert_refused(cube(np.full_like(LIGHT, 65535)), "1.fits", "nothing in band g")
    assert_refused(cube(np.minimum(LIGHT * 1e4, 65535)), "1.fits", "nanomaggies")


@pytest.mark.parametrize("unit, remedy", [("maggies", "1e9"), ("Jy", "2.754e5"), ("mJy/pixel", "275.4"), ("ADU", "zero point"),
                                          ("counts", "zero point"), ("erg/s/cm^2/Hz", "zero point"), ("nanomaggy/arcsec^2", "zero point")])
def test_a_unit_that_is_named_is_believed(unit, remedy):
    for data in (cube(BUNIT=unit), three([{"BUNIT": unit}] * 3)):
        assert_refused(data, "1.fits", unit, "BUNIT", remedy)


def test_nanomaggies_by_any_name():
    for unit in ("nanomaggy", "nanomaggies", "nMgy", "nanomaggy/pix", ""):
        np.testing.assert_array_equal(decode(cube(BUNIT=unit), "1.fits"), picture())


# In what file


def tiles(light: np.ndarray = LIGHT, kind: str = "RICE_1", **options) -> bytes:
    return file_of(fits.PrimaryHDU(), fits.CompImageHDU(light, compression_type=kind, **options))


def test_ends_of_names(tmp_path):
    "One file by all its names: each is read, and the galaxy's name is without the whole end."
    ways = {"": cube(), ".gz": gzip.compress(cube()), ".fz": tiles(kind="GZIP_1", quantize_level=0)}
    for name in ("a.fits", "b.FITS", "c.fit", "d.fts", "e.fits.gz", "f.Fits.GZ", "g.fit.gz", "h.fits.fz", "i.FTS.FZ", "ngc.1.fits.gz"):
        data = ways[next(end for end in (".gz", ".fz", "") if name.lower().endswith(end))]
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(decode(data, name), picture())
    assert Images(tmp_path, READABLE).ids.tolist() == [*"abcdefghi", "ngc.1"]
    assert {split_name(f"folder.fits/7{end.upper()}") for end in KINDS} == {("7", kind) for kind in READABLE}
    np.testing.assert_allclose(decode(tiles(), "1.fits.fz").mean(), picture().mean(), rtol=0.02)


def test_a_gzip_that_bursts():
    bomb = gzip.compress(bytes(2**24)) * 128  # 2 GiB, as a gzip may hold several
    with limited(1e9):
        assert_refused(bomb, "1.fits.gz", "unfolded, more than the 128 MiB", "smaller stamp")


def test_tiles_that_burst():
    "A header that claims a huge image or a huge tile, and a tile that is larger than its header says."
    for card in (b"ZNAXIS1", b"ZTILE1 "):
        claim = tiles().replace(card + b" =                  240", card + b" =            999999999", 1)
        assert claim != tiles()
        with limited(1e9):
            assert_refused(claim, "1.fits.fz", "unfolded, more than the 128 MiB")
    with fits.open(io.BytesIO(tiles(np.zeros_like(LIGHT), "GZIP_1", quantize_level=0)), disable_image_compression=True) as file:
        cards = [card for card in file[1].header.cards if card.keyword.startswith("Z")]
    bomb = np.frombuffer(gzip.compress(bytes(2**27 + 1), 1), np.uint8)
    column = fits.Column("COMPRESSED_DATA", f"1PB({len(bomb)})", array=np.array([bomb, bomb[:9]], object))
    table = fits.BinTableHDU.from_columns([column], fits.Header(cards))
    with limited(1e9):
        assert_refused(file_of(fits.PrimaryHDU(), table), "1.fits.fz", "unfolded, more than the 128 MiB")


def test_a_file_cut_short():
    for name, data in (("1.fits.gz", gzip.compress(cube())), ("1.fits.fz", tiles())):
        assert_refused(data[: len(data) // 2], name, "fetch it again")


# Whether there is a galaxy


def png(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def noise(level: float, sigma: float) -> np.ndarray:
    return np.random.default_rng(0).normal(level, sigma, (300, 300, 3)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("level, sigma", [(0, 0), (128, 0), (255, 0), (5, 3), (128, 10), (250, 20)])
def test_a_blank_picture_is_refused(level, sigma):
    assert_refused(png(noise(level, sigma)), "1.png", "nearly uniform", "remove it")
    Image.fromarray(noise(level, sigma)).save(file := io.BytesIO(), "JPEG")
    assert_refused(file.getvalue(), "1.jpg", "nearly uniform")


def test_blank_pictures_are_listed(mock_folder, weights, tmp_path, cli):
    source = min((mock_folder / "images_training_rev1").iterdir())
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / source.name).write_bytes(source.read_bytes())
    (folder / "blank.png").write_bytes(png(noise(128, 0)))
    command = "predict", folder, "--weights", weights, "--rotations", 1, "--out", tmp_path / "o.csv"
    cli(*command).refused("blank.png is nearly uniform", "--skip-bad")
    assert cli(*command, "--skip-bad").code == 0
    assert pd.read_csv(tmp_path / "o.bad.csv").name.tolist() == ["blank.png"] and len(pd.read_csv(tmp_path / "o.csv")) == 1


def test_check_names_blank_pictures(damaged, cli):
    image = min((damaged / "images_training_rev1").iterdir())
    Image.new("RGB", (424, 424), "grey").save(image)
    cli("data", "check", damaged).refused(f"{image} is nearly uniform")


def deep_png(pixels: np.ndarray) -> bytes:  # of [H, W, 3] uint16
    "A PNG of 16 bits a colour, which Pillow does not write."
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_deep_pictures_are_refused(bits):
    galaxy = np.repeat((np.exp(-np.hypot(x, y) / 30) * (2**bits - 1))[..., None], 3, 2).astype(np.uint16)
    assert_refused(deep_png(galaxy), "1.png", "16 bits", "convert it")


@pytest.mark.parametrize("side", [4200, 12_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_too_large_is_refused_before_memory_is_taken(side):
    small = deep_png(np.zeros((1, 1, 3), np.uint16))
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with limited(1e9):
        assert_refused(data, "1.png", f"{side}x{side} px" if side < 13_000 else "pixels")


def test_a_hint_at_another_scale(mock_folder, weights, tmp_path, cli):
    "One line with how many, and the predictions are written; none for stamps of the challenge."
    source = sorted((mock_folder / "images_training_rev1").iterdir())[:3]
    for n, file in enumerate(source):
        Image.open(file).resize((424 * (1 + n),) * 2).save(tmp_path / f"{n}.png")
    command = "predict", tmp_path, "--weights", weights, "--rotations", 1, "--out", tmp_path / "o.csv"
    done = cli(*command)
    hints = [line for line in done.lines if "much wider" in line]
    assert done.code == 0 and len(hints) == 1 and hints[0].startswith("2 images") and "1.png: 848 px" in hints[0]
    assert len(pd.read_csv(tmp_path / "o.csv")) == 3
    for n in (1, 2):
        (tmp_path / f"{n}.png").unlink()
    assert "much wider" not in cli(*command, "--overwrite").err


def test_no_real_galaxy_is_refused(mock_folder):
    "Mock galaxies here; thousands of real ones where the prose of the notebook says so."
    images = Images(mock_folder / "images_training_rev1")
    for i in range(len(images)):
        assert decode(images.read(i), images.where(i)).shape == (CROP, CROP, 3)
