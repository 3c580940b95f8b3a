"""Prediction as an astronomer meets it: ensembles and views, stopping and going on, shares, images of all kinds, weights given away."""

import io
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, assert_whole, write_untrained
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from gzpaper import catalogue, predict, weights
from gzpaper.catalogue import check_submission, predict_folder
from gzpaper.data import read_labels, read_table
from gzpaper.decoding import CROP, decode
from gzpaper.images import Images, scale_area
from gzpaper.loader import pieces_of
from gzpaper.models import build_model
from gzpaper.paper import root
from gzpaper.predict import Ensemble, at_scale, predict_images, write_predictions
from gzpaper.scores import training_mean
from gzpaper.spec import Spec
from gzpaper.tree import COLUMNS, InputError, predictions_table
from gzpaper.weights import load_weights, read_header, release, released, save_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from loader import SMAPS, copies, in_fresh_process, private_memory

IMAGES, N = "images_training_rev1", 40
FEW = {"rotations": 1, "flip": False, "progress": False}


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> list[Path]:
    "Two tiny networks that answer differently."
    folder = tmp_path_factory.mktemp("members")
    return [write_untrained(folder / f"{spread}.safetensors", spread) for spread in (1.0, 3.0)]


@pytest.fixture
def parts_of_eight(monkeypatch):
    "Five parts of the 40 mock galaxies."
    monkeypatch.setattr(predict, "_PART", 8)


def table_of(folder: Path, name: str = "out.csv") -> pd.DataFrame:
    return read_table(folder / name, complete=True)


def test_an_ensemble_is_the_mean_of_its_members(mock_folder, members):
    one, other, both = (predict_images(files, mock_folder / IMAGES, **FEW)[COLUMNS] for files in (members[0], members[1], members))
    assert np.abs(one - other).to_numpy().max() > 0.05
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-6)


def test_spread_is_over_views_and_members(mock_folder, members):
    images = Images(mock_folder / "images_test_rev1")
    stamps = {35: np.stack([scale_area(decode(images.read(i), images.where(i)), 35) for i in range(len(images))])}
    assert np.isnan(Ensemble(members[:1], 1, False).predict(stamps)[:, 37:]).all()
    each = [predict.vote_fractions(Ensemble([m], 1, False).predict(stamps)[:, :37]) for m in members]
    found = Ensemble(members, 1, False).predict(stamps)[:, 37:]
    np.testing.assert_allclose(found, np.abs(each[0] - each[1]) / np.sqrt(2), atol=1e-6)
    assert Ensemble(members, 4, True, (0.9, 1.1)).members[0][2].shape == (16, 2, 3)


def test_parts_give_what_memory_gives(mock_folder, members, tmp_path, parts_of_eight):
    assert predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, **FEW) == (N, 0)
    whole = predict_images(members, mock_folder / IMAGES, **FEW)
    np.testing.assert_allclose(table_of(tmp_path), whole, atol=1e-6)
    assert [f.name for f in tmp_path.iterdir() if f.suffix != ".lock"] == ["out.csv"]


def test_what_is_done_is_not_done_again(mock_folder, members, tmp_path, parts_of_eight, monkeypatch):
    "Stopped after three parts, by whatever, the same command does the other two."
    done, plain = [], Ensemble.predict

    def counted(self, pixels):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return plain(self, pixels)

    monkeypatch.setattr(Ensemble, "predict", counted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, **FEW)
    assert len(list((tmp_path / "out.csv.parts").glob("*.safetensors"))) == 3 and not (tmp_path / "out.csv").exists()
    done[:] = [1] * 5  # from here on it counts without stopping
    assert predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, **FEW) == (N, 0)
    assert len(done) == 7
    np.testing.assert_allclose(table_of(tmp_path), predict_images(members, mock_folder / IMAGES, **FEW), atol=1e-6)
    assert_whole(tmp_path)


def test_shares_make_one_table(mock_folder, members, tmp_path, parts_of_eight):
    for i in (3, 1):
        assert predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, shard=(i, 3), **FEW) is None
    assert predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, shard=(2, 3), **FEW) == (N, 0)
    np.testing.assert_allclose(table_of(tmp_path), predict_images(members, mock_folder / IMAGES, **FEW), atol=1e-6)


def test_two_shares_end_at_once(mock_folder, members, tmp_path, parts_of_eight, monkeypatch):
    "Both find all parts there; the second to write finds that the first has."
    predict_share = catalogue._predict_share

    def share(number: int):
        return predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, shard=(number, 2), **FEW)

    def slowly(*arguments):
        predict_share(*arguments)
        monkeypatch.setattr(catalogue, "_predict_share", predict_share)
        assert share(2) == (N, 0)

    monkeypatch.setattr(catalogue, "_predict_share", slowly)
    assert share(1) == (N, 0)
    assert_whole(tmp_path)


def test_parts_of_another_command_do_not_mix(mock_folder, members, tmp_path, parts_of_eight):
    arguments = mock_folder / IMAGES, tmp_path / "out.csv"
    predict_folder(*arguments, members, shard=(1, 2), **FEW)
    for other in ({"weights": members[:1]}, {"rotations": 2}, {"scales": (1.1,)}):
        with pytest.raises(InputError, match="out.csv.parts has parts .* other weights or views"):
            predict_folder(*arguments, shard=(1, 2), **{"weights": members, **FEW, **other})


def test_a_quick_table_and_another_do_not_mix(mock_folder, members, tmp_path, parts_of_eight, cli):
    "Whichever was begun first, and whichever share comes next."
    for first, other in (((), ("--fast",)), (("--fast",), ())):
        command = "predict", mock_folder / IMAGES, "--weights", members[0], "--out", tmp_path / f"{len(first)}.csv", "--device", "cpu"
        assert cli(*command, *first, "--shard", "1/2").code == 0
        cli(*command, *other, "--shard", "2/2").refused("parts that were predicted with other weights or views (also by --fast)")
        assert cli(*command, *first, "--shard", "2/2").code == 0
    table, quick = table_of(tmp_path, "0.csv"), table_of(tmp_path, "1.csv")
    assert 0 < np.abs(table - quick)[COLUMNS].to_numpy().max() < 0.5


def test_quick_parts_of_another_precision_do_not_mix(mock_folder, members, tmp_path, parts_of_eight, monkeypatch):
    arguments, how = (mock_folder / IMAGES, tmp_path / "out.csv", members), {"fast": True, "progress": False}
    for share, precision in ((1, torch.float32), (2, torch.bfloat16)):
        monkeypatch.setattr(predict, "pick_precision", lambda name, device, precision=precision: precision)
        if share == 1:
            assert predict_folder(*arguments, shard=(1, 2), **how) is None
    with pytest.raises(InputError, match="other weights or views"):
        predict_folder(*arguments, shard=(2, 2), **how)


@pytest.mark.parametrize("own", [{"rotations": 4}, {"flip": False}, {"scales": (1.0, 1.1)}])
def test_fast_has_views_of_its_own(own, members):
    with pytest.raises(InputError, match="--fast sets the views: leave out --rotations"):
        Ensemble(members, fast=True, **own)


def one_view_after_the_other(files: list[Path], stamps: dict[int, np.ndarray], flip: bool | None) -> np.ndarray:
    "The mean of all views as the paper's trainings are predicted: all galaxies at once, batch norm as it was learned."
    loaded = [load_weights(file)[:2] for file in files]
    each = [view for model, expects in loaded
            for view in predict._predict_views(model, expects, stamps[expects.side], predict.view_matrices(expects, 8, flip))]
    return torch.stack(each).mean(0).numpy()


@pytest.mark.parametrize("flip", [True, None])
def test_quicker_answers_are_the_same(flip, mock_folder):
    "The released networks, more galaxies than a core works on at a time; not a multiple of their number."
    images, files = Images(mock_folder / IMAGES), released()
    pictures = [decode(images.read(i), images.where(i)) for i in range(N - 3)]
    stamps = {side: np.stack([scale_area(p, side) for p in pictures]) for side in Ensemble(files).sides}
    found = Ensemble(files, flip=flip).predict(stamps)[:, : len(COLUMNS)]
    np.testing.assert_allclose(found, one_view_after_the_other(files, stamps, flip), atol=1e-5)
    assert len(pieces_of(N - 3, 80)) > 1


def test_what_is_folded_answers_the_same():
    "Stacks, blocks of ResNet, residuals, and networks without batch norm; the network itself is left as it is."
    for name, parameters in {"vgg7": {"width": 4}, "four_convolutions": {}, "efficientnet_lite0": {}, "resnet50": {}}.items():
        torch.manual_seed(0)
        network = build_model(name, 64, **parameters).train()
        with torch.no_grad():
            network(torch.randn(8, 3, 64, 64) + 1)  # so that batch norm has statistics
        network.eval()
        before, noise = [value.clone() for value in network.state_dict().values()], torch.randn(4, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(predict._folded(network)(noise), network(noise), atol=1e-4, rtol=0)
        assert all(map(torch.equal, network.state_dict().values(), before))


def test_predicting_leaves_the_number_of_threads(mock_folder, members, tmp_path):
    cores = torch.get_num_threads()
    predict_images(members, mock_folder / IMAGES, **FEW)
    assert torch.get_num_threads() == cores
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == cores


def test_a_damaged_part_is_predicted_again(mock_folder, members, tmp_path, parts_of_eight):
    predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, shard=(1, 2), **FEW)
    part = sorted((tmp_path / "out.csv.parts").iterdir())[1]
    part.write_bytes(part.read_bytes()[:500])
    for i, done in ((1, None), (2, (N, 0))):
        assert predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, shard=(i, 2), **FEW) == done


@pytest.mark.parametrize("told", ["{", "[]", "7", '"a"', "[" * 9999, '{"about": {}}', "bad", "shape", "dtype"])
def test_a_part_of_another_program_is_refused(told, mock_folder, members, tmp_path):
    folder, values = tmp_path / "out.csv.parts", torch.zeros(N, 74)
    about = {"about": Ensemble(members, 1, False).about, "images": "a", "bad": [[N, "is empty"]] if told == "bad" else []}
    values = {"shape": values[:, 1:], "dtype": values.int()}.get(told, values).contiguous()
    folder.mkdir()
    save_file({"values": values}, folder / "000000.safetensors",
              metadata={"gzpaper": json.dumps(about) if told in ("bad", "shape", "dtype") else told})
    before = (folder / "000000.safetensors").read_bytes()
    with pytest.raises(InputError, match="000000.safetensors is not part of a prediction: move it away"):
        predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, **FEW)
    assert (folder / "000000.safetensors").read_bytes() == before


def test_another_number_of_shares_is_refused(mock_folder, members, tmp_path, parts_of_eight):
    "Beside it or after it; the parts of versions that did not note the number are gone on with."
    arguments, folder = (mock_folder / IMAGES, tmp_path / "out.csv", members), tmp_path / "out.csv.parts"
    assert predict_folder(*arguments, shard=(1, 2), **FEW) is None
    for other in ((1, 1), (1, 3)):
        with pytest.raises(InputError, match="out.csv.parts was begun with --shard 1/2: go on"):
            predict_folder(*arguments, shard=other, **FEW)
    for note in folder.glob("*.share"):
        note.unlink()
    assert predict_folder(*arguments, **FEW) == (N, 0)


def test_one_share_beside_two(mock_folder, members, tmp_path, parts_of_eight, monkeypatch):
    "Begun before the other has written anything."
    predict_share, refused = catalogue._predict_share, []

    def beside(*some):
        monkeypatch.setattr(catalogue, "_predict_share", predict_share)
        with pytest.raises(InputError, match="was begun with --shard 1/1") as error:
            predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, shard=(1, 2), **FEW)
        refused.append(error)
        predict_share(*some)

    monkeypatch.setattr(catalogue, "_predict_share", beside)
    assert predict_folder(mock_folder / IMAGES, tmp_path / "out.csv", members, **FEW) == (N, 0)
    assert refused and not (tmp_path / "out.csv.parts").exists()


def test_what_failed_at_once_may_be_shared_otherwise(damaged, members, tmp_path):
    first = sorted((damaged / IMAGES).iterdir())[0]
    whole = first.read_bytes()
    first.write_bytes(b"no image")
    with pytest.raises(InputError, match="is not an image"):
        predict_folder(damaged / IMAGES, tmp_path / "out.csv", members, shard=(1, 2), **FEW)
    assert not (tmp_path / "out.csv.parts").exists()
    first.write_bytes(whole)
    assert predict_folder(damaged / IMAGES, tmp_path / "out.csv", members, **FEW) == (N, 0)


@pytest.mark.parametrize("removed", range(8))
def test_stopped_while_parts_are_removed(removed, mock_folder, members, tmp_path, parts_of_eight, monkeypatch):
    "All is predicted and written: the same command removes the rest. Nothing else does as if it were that command."
    arguments, folder = (mock_folder / IMAGES, tmp_path / "out.csv", members), tmp_path / "out.csv.parts"
    unlink, gone = Path.unlink, []

    def dying(path: Path, *some, **more):
        if path.parent == folder and not path.name.startswith("."):
            if len(gone) == removed:
                raise KeyboardInterrupt
            gone.append(path)
        unlink(path, *some, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying)
        if removed < 7:  # five parts, two notes
            with pytest.raises(KeyboardInterrupt):
                predict_folder(*arguments, **FEW)
        else:
            assert predict_folder(*arguments, **FEW) == (N, 0)
            return
    monkeypatch.setattr(Ensemble, "predict", lambda *_: pytest.fail("predicted again"))
    shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-other"))
    with pytest.raises(InputError):
        predict_folder(mock_folder / "images_test_rev1", tmp_path.with_name(f"{tmp_path.name}-other") / "out.csv", members, **FEW)
    assert predict_folder(*arguments, **FEW) == (N, 0) and not folder.exists()


def test_a_table_of_others_is_refused_before_the_work(mock_folder, members, tmp_path, parts_of_eight, monkeypatch):
    "As long as parts are missing, no table can be this command's."
    arguments = mock_folder / IMAGES, tmp_path / "out.csv", members
    assert predict_folder(*arguments, shard=(1, 2), **FEW) is None
    monkeypatch.setattr(Ensemble, "predict", lambda *_: pytest.fail("predicted in vain"))
    for name, more in (("c.csv", {"catalogue_out": tmp_path / "c.csv"}), ("out.csv", {})):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=f"{name} is there already: add --overwrite"):
            predict_folder(*arguments, shard=(2, 2), **more, **FEW)
        assert (tmp_path / name).read_text() == "mine"


def test_whose_list_of_bad_images(mock_folder, members, tmp_path):
    "`up.csv` ends in `p.csv`; and a list of the version that named no table."
    (tmp_path / "p.bad.csv").write_text("name,reason,table\na.jpg,is empty,up.csv\n")
    with pytest.raises(InputError, match="p.bad.csv lists the unusable images of up.csv"):
        predict_folder(mock_folder / IMAGES, tmp_path / "p.csv", members, **FEW)
    (tmp_path / "p.bad.csv").write_text("name,reason\na.jpg,is empty\n")
    with pytest.raises(InputError, match="p.bad.csv is of an older version .*move it away"):
        predict_folder(mock_folder / IMAGES, tmp_path / "p.csv", members, **FEW)
    (tmp_path / "=p.bad.csv").write_text("name,reason,table\na.jpg,is empty,'=p.csv\n")
    assert predict_folder(mock_folder / IMAGES, tmp_path / "=p.csv", members, **FEW) == (N, 0)


def test_images_that_were_cut_again_are_predicted_again(damaged, members, tmp_path, parts_of_eight):
    "Other pixels under the same names."
    predict_folder(damaged / IMAGES, tmp_path / "out.csv", members, shard=(1, 2), **FEW)
    for file in (damaged / IMAGES).iterdir():
        Image.open(file).rotate(90).save(file)
    for i, done in ((1, None), (2, (N, 0))):
        assert predict_folder(damaged / IMAGES, tmp_path / "out.csv", members, shard=(i, 2), **FEW) == done
    np.testing.assert_allclose(table_of(tmp_path), predict_images(members, damaged / IMAGES, **FEW), atol=1e-6)


def test_ids_that_parquet_keeps_as_text(mock_folder, members, tmp_path):
    table = predict_images(members[0], mock_folder / IMAGES, **FEW)
    table.astype({"GalaxyID": str}).to_parquet(tmp_path / "text.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "text.parquet", complete=True), table)


def test_a_share_without_an_image_is_noticed(damaged, members, tmp_path, parts_of_eight):
    bad = sorted((damaged / IMAGES).iterdir())[0]
    bad.write_bytes(b"no image")
    arguments = damaged / IMAGES, tmp_path / "out.csv", members
    assert predict_folder(*arguments, shard=(1, 2), skip_bad=True, **FEW) is None
    with pytest.raises(InputError, match=f"{bad.name} is not an image.*--skip-bad"):
        predict_folder(*arguments, shard=(2, 2), **FEW)
    assert predict_folder(*arguments, shard=(2, 2), skip_bad=True, **FEW) == (N - 1, 1)


def test_one_file_for_two_tables(mock_folder, members, tmp_path, cli):
    command = "predict", mock_folder / IMAGES, "--weights", members[0], "--out", tmp_path / "o.csv"
    cli(*command, "--catalogue", tmp_path / "sub/../o.csv").refused("o.csv is named twice")


def test_a_name_that_fits_cannot_hold(mock_folder, members, tmp_path, cli):
    folder = shutil.copytree(mock_folder / "images_test_rev1", tmp_path / "images")
    next(folder.iterdir()).rename(folder / "NGC é.jpg")
    command = "predict", folder, "--weights", members[0], "--rotations", 1, "--out", tmp_path / "o.csv", "--catalogue"
    cli(*command, tmp_path / "c.fits").refused("NGC é.jpg", "ASCII", "rename")
    assert cli(*command, tmp_path / "c.parquet").code == 0


def test_bad_images(damaged, weights, tmp_path, cli):
    "The first stops it; skipped, they are listed, and the others are predicted. Put right, they are predicted too."
    names, out = sorted(f.name for f in (damaged / IMAGES).iterdir()), tmp_path / "out.csv"
    whole = (damaged / IMAGES / names[9]).read_bytes()
    for i in (5, 9):
        (damaged / IMAGES / names[i]).write_bytes(b"no image")
    command = "predict", damaged / IMAGES, "--weights", weights, "--rotations", 1, "--out", out
    cli(*command).refused(names[5], "is not an image", "--skip-bad")
    done = cli(*command, "--skip-bad")
    assert done.code == 0 and "38 galaxies" in done.out and "2 images could not be used" in done.out and "out.bad.csv" in done.out
    listed = pd.read_csv(tmp_path / "out.bad.csv")
    assert listed.name.tolist() == [names[5], names[9]] and listed.reason.str.contains("is not an image").all()
    assert not set(table_of(tmp_path).GalaxyID) & {int(Path(names[i]).stem) for i in (5, 9)}
    (damaged / IMAGES / names[9]).write_bytes(whole)
    assert "39 galaxies" in cli(*command, "--skip-bad", "--overwrite").out


def test_nothing_but_bad_images(tmp_path, weights, cli):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_text("none")
    done = cli("predict", tmp_path / "images", "--weights", weights, "--out", tmp_path / "o.csv", "--skip-bad")
    done.refused("no image of", "could be used", "a.jpg is not an image")


def light_of(seed: int) -> np.ndarray:
    "A mock galaxy before the stretch, [3, n, n] nanomaggies a pixel in g, r, i."
    pytest.importorskip("galsim", reason="mock galaxies need GalSim: install gzpaper[paper]")
    from gzpaper import mock

    rng = np.random.default_rng(seed)
    return np.moveaxis(mock._expose(mock.draw_galaxy(rng), rng), 2, 0)[::-1]


def fits_file(arrays: list[np.ndarray], compressed: bool = False) -> bytes:
    fits = pytest.importorskip("astropy.io.fits")
    file, kind = io.BytesIO(), fits.CompImageHDU if compressed else fits.ImageHDU
    first = [] if compressed else [fits.PrimaryHDU(arrays[0])]
    fits.HDUList([*(first or [fits.PrimaryHDU()]), *(kind(a) for a in arrays[len(first) :])]).writeto(file)
    return file.getvalue()


def test_fits_bands_look_like_the_mocks_that_were_made_to_look_like_the_challenge():
    from gzpaper.mock import _BAND_WEIGHTS, stretch

    light = next(light for light in map(light_of, range(20)) if light.shape[1] >= CROP)
    edge = (light.shape[1] - CROP) // 2
    middle = np.moveaxis(light[::-1], 0, 2)[edge : edge + CROP, edge : edge + CROP]
    expected, picture = stretch(middle), decode(fits_file([light]), "1.fits")
    # where a band saturates, astropy keeps the colour; where noise makes the sky negative, it is black
    ordinary = (expected.max(-1) < 255) & ((middle * _BAND_WEIGHTS).mean(-1) > 1e-6)
    assert ordinary.mean() > 0.3 and expected[ordinary].std() > 3
    assert np.abs(picture.astype(int)[::-1] - expected)[ordinary].max() <= 1
    for same in ([np.moveaxis(light, 0, 2)], list(light)):
        np.testing.assert_array_equal(decode(fits_file(same), "1.fits"), picture)
    np.testing.assert_allclose(decode(fits_file([light.astype(np.float32)], compressed=True), "1.fits").mean(), picture.mean(), rtol=0.02)


FITS_DAMAGE = {
    "one band": ([np.zeros((300, 300))], ["holds PRIMARY [300, 300]", "three bands in the order g, r, i"]),
    "image, error and quality": ([np.zeros((300, 300))] * 4, ["[300, 300], [300, 300]", "three bands"]),
    "four planes": ([np.zeros((4, 300, 300))], ["[4, 300, 300]", "three bands"]),
    "two sizes": ([np.zeros((300, 300)), np.zeros((300, 300)), np.zeros((200, 200))], ["[200, 200]", "one size"]),
    "small": ([np.zeros((3, 231, 300))], ["300x231 px, smaller than the 232 px"]),
    "a hole": ([np.full((3, 300, 300), np.nan)], ["not finite", "fill them"]),
}


@pytest.mark.parametrize("damage", FITS_DAMAGE)
def test_bad_fits(damage, tmp_path, weights, cli):
    arrays, words = FITS_DAMAGE[damage]
    (tmp_path / "1.fits").write_bytes(fits_file(arrays))
    cli("predict", tmp_path, "--weights", weights, "--out", tmp_path / "o.csv").refused("1.fits", *words)


def test_fits_that_is_none(tmp_path, weights, cli):
    (tmp_path / "1.fits").write_bytes(fits_file([np.zeros((3, 300, 300))])[:4000])
    cli("predict", tmp_path, "--weights", weights, "--out", tmp_path / "o.csv").refused("1.fits")
    (tmp_path / "1.fits").write_text("GalaxyID,Class1.1\n")
    cli("predict", tmp_path, "--weights", weights, "--out", tmp_path / "o.csv").refused("1.fits", "fetch it again")


def test_a_png_that_bursts(tmp_path, weights, cli):
    "A short file, a very long text in it."
    told = PngInfo()
    told.add_text("history", "a" * 3_000_000, zip=True)
    Image.new("RGB", (300, 300)).save(tmp_path / "1.png", pnginfo=told)
    cli("predict", tmp_path, "--weights", weights, "--out", tmp_path / "o.csv").refused("1.png", "is damaged")


def test_kinds_of_images_agree(mock_folder, weights, tmp_path):
    "The same pixels as JPEG and as PNG; names that are no numbers; a FITS image."
    source = sorted((mock_folder / IMAGES).iterdir())[0]
    shutil.copy(source, tmp_path / "ngc-1.JPG")
    Image.open(source).save(tmp_path / "ngc-2.png")
    (tmp_path / "ngc-3.fits").write_bytes(fits_file([np.pad(np.ones((3, 40, 40)), ((0, 0), (130, 130), (130, 130)))]))
    table = predict_images(weights, tmp_path, **FEW)
    assert table.GalaxyID.tolist() == ["ngc-1", "ngc-2", "ngc-3"]
    np.testing.assert_array_equal(table[COLUMNS].iloc[0], table[COLUMNS].iloc[1])


def test_stores_take_jpeg_alone(mock_folder, tmp_path):
    folder = shutil.copytree(mock_folder / "images_test_rev1", tmp_path / "images")
    before = Images(folder).fingerprint
    Image.new("RGB", (424, 424)).save(folder / "7.png")
    assert Images(folder).fingerprint == before and len(Images(folder, predict.READABLE)) == len(Images(folder)) + 1


def test_no_astropy(tmp_path, weights, cli, monkeypatch):
    monkeypatch.setattr("gzpaper.decoding.find_spec", lambda name: None)
    monkeypatch.setattr("gzpaper.catalogue.find_spec", lambda name: None)
    (tmp_path / "1.fits").write_bytes(b"")
    cli("predict", tmp_path, "--weights", weights, "--out", tmp_path / "o.csv").refused("1.fits", "astropy", "pip install astropy")
    cli("predict", tmp_path, "--weights", weights, "--catalogue", tmp_path / "c.fits").refused("c.fits", "pip install astropy")


def test_no_released_weights(mock_folder, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(catalogue, "released", list)
    cli("predict", mock_folder / IMAGES, "--out", tmp_path / "o.csv").refused("comes without weights", "--weights")


def test_scales_move_the_sky_out_and_in():
    pixels = np.full((CROP, CROP, 3), 9, np.uint8)
    pixels[100:132, 100:132] = 200
    areas = [(at_scale(pixels, scale) > 100).all(-1).sum() for scale in (0.5, 1, 2)]
    np.testing.assert_allclose(areas, [16**2, 32**2, 64**2], rtol=0.1)
    assert (at_scale(pixels, 0.5)[0] == 9).all()


# Weights that are given away


@pytest.fixture
def scores(tmp_path) -> Path:
    (tmp_path / "scores.json").write_text(json.dumps({"rmse": 0.0841234, "n": 6500, "mock": False}))
    return tmp_path / "scores.json"


def test_released_weights(scores, tmp_path, mock_folder, cli, monkeypatch):
    "Half the size, the same header and, within 1e-3, the same predictions; `gzpaper predict` finds them."
    members = [write_untrained(tmp_path / f"{spread}.safetensors", spread) for spread in (1.0, 0.5)]
    out = tmp_path / "package/released"
    assert cli("release", *members, "--scores", scores, "--out", out).code == 0
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == 2 and [read_header(f) for f in files] == [read_header(m) for m in members]
    for file, member in zip(files, members):
        assert file.stat().st_size < 0.75 * member.stat().st_size  # of a tiny network the header is a good part
        one, other = (predict_images(f, mock_folder / IMAGES, **FEW)[COLUMNS] for f in (file, member))
        assert 0 < np.abs(one - other).to_numpy().max() < 1e-3
        assert {p.dtype.itemsize for p in load_weights(file)[0].parameters()} == {4}
        card = file.with_suffix(".md").read_text()
        assert "| rmse | 0.084123 |" in card and "| n | 6500 |" in card and "mock" not in card and "twins" in card
    monkeypatch.setattr(weights, "released_folder", lambda: out)
    assert released() == files
    assert cli("predict", mock_folder / IMAGES, "--out", tmp_path / "o.csv", "--rotations", 1).code == 0
    expected = predict_images(files, mock_folder / IMAGES, 1, progress=False)
    np.testing.assert_allclose(table_of(tmp_path, "o.csv"), expected, atol=1e-6)


def test_a_card_tells_what_a_section_says_of_twins(tmp_path):
    (tmp_path / "09_final.json").write_text(json.dumps({"profile": "sample", "rmse": 0.5, "twins": {"RMSE of one network": 0.0871}}))
    member = write_untrained(tmp_path / "w.safetensors", 1.0)
    [file] = release([member], tmp_path / "09_final.json", tmp_path / "released")
    card = file.with_suffix(".md").read_text()
    assert "| RMSE of one network | 0.0871 |" in card and "0.5 |" not in card and "profile" not in card


def test_a_card_tells_how_a_network_has_learned():
    about = read_header(released()[0])
    taught = about | {"begun_as": about["spec"] | {"epochs": 77}, "spec": about["spec"] | {"teacher": "a name"}}
    plain = about | {"begun_as": None, "spec": about["spec"] | {"teacher": ""}}
    words = "trained for 77 epochs", "means of the labels and a teacher's predictions"
    assert all(w in weights._model_card(taught, {}) and w not in weights._model_card(plain, {}) for w in words)


def test_the_cards_tell_the_published_scores():
    "Those of the twins in section 09, which `gzpaper release --scores` takes."
    twins = json.loads((root() / "paper/numbers/09_final.json").read_text())["twins"]
    cards = [path.with_suffix(".md").read_text() for path in released()]
    assert twins and cards and all(f"| {name} | {value:.5g} |" in card for card in cards for name, value in twins.items())


def test_too_large_to_release(members, scores, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(weights, "_LARGEST", 1000)
    cli("release", *members, "--scores", scores, "--out", tmp_path / "out").refused("2 files", "MiB", "release fewer")
    assert not (tmp_path / "out").exists()


def test_only_networks_that_saw_all_are_released(members, scores, tmp_path, cli):
    model, expects, about = load_weights(members[0])
    save_weights(tmp_path / "w.safetensors", model, Spec.from_dict(about["spec"]), expects, validation_rmse=0.1)
    run = "release", tmp_path / "w.safetensors", "--scores", scores, "--out", tmp_path / "out"
    cli(*run).refused("w.safetensors", "does not say how many", "train again")
    save_weights(tmp_path / "w.safetensors", model, Spec.from_dict(about["spec"]), expects, validation_rmse=0.1, trained_on=8, of=8)
    cli(*run).refused("held out", "--validation 0 --test 0")


def test_a_folder_with_other_files_is_no_release(members, scores, tmp_path, cli):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("all of it")
    cli("release", *members, "--scores", scores, "--out", tmp_path / "out").refused("thesis.txt", "name a new folder")
    assert (tmp_path / "out/thesis.txt").read_text() == "all of it"


def test_no_scores_to_release(members, tmp_path, cli):
    (tmp_path / "scores.json").write_text('{"name": "vgg7"}')
    cli("release", *members, "--scores", tmp_path / "scores.json", "--out", tmp_path / "out").refused("has no score", "JSON")
    (tmp_path / "scores.json").write_text('{"profile": "smoke", "images": 200}')  # a section's, but of no twins
    cli("release", *members, "--scores", tmp_path / "scores.json", "--out", tmp_path / "out").refused("cannot be read", "twins", "JSON")
    cli("release", *members, "--scores", tmp_path / "none.json", "--out", tmp_path / "out").refused("cannot be read", "JSON")


def test_the_package_holds_what_is_released():
    "Whatever weights there are load, are small, have a card, and are in the package's files."
    files = released()
    assert sum(f.stat().st_size for f in files) <= weights._LARGEST
    for file in files:
        load_weights(file)
        assert "twins" in file.with_suffix(".md").read_text()
    assert "released/*" in (Path(__file__).parents[1] / "setup.py").read_text()


def test_training_on_all_galaxies(mock_folder, scores, tmp_path, cli):
    "What released weights come from: nothing is held out, and nothing is said about it."
    options = [*TINY[4:], "--validation", 0, "--test", 0]
    done = cli("train", mock_folder, "--out", tmp_path / "run", *options)
    assert done.code == 0, done.err
    history, header = pd.read_csv(tmp_path / "run/history.csv"), read_header(tmp_path / "run/weights.safetensors")
    assert history.validation_rmse.isna().all() and np.isfinite(history.train_rmse).all()
    assert header["trained_on"] == N and header["validation_rmse"] is None
    [file] = release([tmp_path / "run/weights.safetensors"], scores, tmp_path / "released")
    lie = header | {"spec": header["spec"] | {"model_parameters": header["spec"]["model_parameters"] | {"head": "tree_softmax"}}}
    save_file(load_file(file), tmp_path / "lie.safetensors", metadata={"gzpaper": json.dumps(lie)})  # the shapes are the same
    with pytest.raises(InputError, match="lie.safetensors: the header's spec is not the spec of the training"):
        load_weights(tmp_path / "lie.safetensors")
    assert f"{N} galaxies" in file.with_suffix(".md").read_text()
    assert cli("train", mock_folder, "--out", tmp_path / "run", *options).code == 0
    options[-1] = 8
    assert cli("train", mock_folder, "--out", tmp_path / "some", *options).code == 0
    cli("release", tmp_path / "some/weights.safetensors", "--scores", scores, "--out", tmp_path / "out").refused("held out")


# Submissions

SUBMISSION_DAMAGE = {
    "a galaxy less": (lambda t: t[1:], ["lacks GalaxyID 100", "(1 in all)"]),
    "a galaxy more": (lambda t: pd.concat([t, t[:1].assign(GalaxyID=99)]), ["should not have GalaxyID 99"]),
    "a galaxy twice": (lambda t: pd.concat([t, t[:1]]), ["GalaxyID 100 more than once"]),
    "another order": (lambda t: t[["GalaxyID", *COLUMNS[1:], COLUMNS[0]]], ["has column Class1.2 where", "has Class1.1", "same order"]),
    "IDs last": (lambda t: t[[*COLUMNS, "GalaxyID"]], ["has column Class1.1 where", "has GalaxyID"]),
    "an index": (lambda t: t.reset_index(), ["has column index where", "has GalaxyID"]),
    "a column more": (lambda t: t.assign(note=1), ["extra column note"]),
    "a column less": (lambda t: t.drop(columns="Class7.2"), ["no column Class7.2"]),
    "a hole": (lambda t: t.mask(t == t.iloc[2, 5]), ["GalaxyID 102", "is empty"]),
    "too high": (lambda t: t.assign(**{"Class5.1": 1.01}), ["GalaxyID 100", "Class5.1 is 1.01", "0 to 1"]),
    "too low": (lambda t: t.assign(**{"Class5.1": -0.2}), ["Class5.1 is -0.2", "0 to 1"]),
    "IDs with a point": (lambda t: t.assign(GalaxyID=t.GalaxyID.astype(float)), ["GalaxyID '100.0' is not a whole number"]),
    "a name": (lambda t: t.replace({"GalaxyID": {100: "NGC 1300"}}), ["GalaxyID 'NGC 1300' is not a whole number"]),
}


@pytest.fixture
def submission() -> pd.DataFrame:
    return predictions_table(np.arange(100, 130), np.random.default_rng(0).uniform(size=(30, 37)))


@pytest.mark.parametrize("damage", SUBMISSION_DAMAGE)
def test_bad_submission(damage, submission, tmp_path, cli):
    act, words = SUBMISSION_DAMAGE[damage]
    submission.to_csv(tmp_path / "like.csv", index=False)
    act(submission).to_csv(tmp_path / "mine.csv", index=False)
    cli("submission", tmp_path / "mine.csv", "--like", tmp_path / "like.csv").refused("mine.csv", *words)


def test_good_submission(submission, tmp_path, cli):
    "The rows' order does not count."
    submission.to_csv(tmp_path / "like.csv", index=False)
    submission[::-1].to_csv(tmp_path / "mine.csv.zip", index=False)
    done = cli("submission", tmp_path / "mine.csv.zip", "--like", tmp_path / "like.csv")
    assert done.code == 0 and "30 galaxies" in done.out
    submission.to_parquet(tmp_path / "mine.parquet")
    cli("submission", tmp_path / "mine.parquet", "--like", tmp_path / "like.csv").refused("mine.parquet", "is not a CSV file")
    cli("submission", tmp_path / "like.csv", "--like", tmp_path / "mine.parquet").refused("mine.parquet", "is not a CSV file")


def test_kaggles_file_and_ours_pass(real_folder, tmp_path):
    like = real_folder / "central_pixel_benchmark.zip"
    if not like.exists():
        pytest.skip("Kaggle's benchmark file is not beside the galaxies")
    assert check_submission(like, like) == 79975
    labels = read_labels(next(real_folder.glob("training_solutions_rev1.*")))[COLUMNS].to_numpy()
    write_predictions(training_mean(labels, read_table(like).GalaxyID), tmp_path / "mean.csv")
    assert check_submission(tmp_path / "mean.csv", like) == 79975


# Memory


def memory_while_writing(images: Path, weights: Path, out: Path, keep: bool = False) -> float:  # MB
    "The private memory of a process that has predicted a folder, just before its table is written."
    torch.set_num_threads(1)
    found, kept, write, read_ahead = [], [], catalogue.write_predictions, predict._read_ahead

    def measured(*arguments):
        found.append(private_memory())
        write(*arguments)

    def keeping(*arguments):  # what a careless program does
        for part in read_ahead(*arguments):
            kept.append(part)
            yield part

    catalogue.write_predictions = measured
    predict._read_ahead = keeping if keep else read_ahead
    predict_folder(images, out, [weights], **FEW)
    return found[0]


@pytest.mark.skipif(not SMAPS.exists(), reason="private memory is read from /proc, which is not here")
def test_memory_does_not_grow_with_the_folder(mock_folder, tmp_path):
    "It holds names and answers of all images, 2 kB each, and not their pixels, 33 kB each."
    weights = write_untrained(tmp_path / "weights.safetensors", size=96)
    folders = {n: copies(mock_folder / IMAGES, tmp_path / f"{n}", n) for n in (200, 2000)}
    few, many, careless = (in_fresh_process(memory_while_writing, folders[n], weights, tmp_path / f"{n}-{keep}.csv", keep)
                           for n, keep in ((200, False), (2000, False), (2000, True)))
    assert many - few < 12 < careless - few - 40
