"""The page of `gzpaper serve`: what it tells is what `gzpaper predict` writes, and what cannot be used is refused in one line."""

import asyncio
import shutil
import socket
import sys
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import assert_says, assert_whole

from gzpaper.data import KaggleFolder
from gzpaper.paper import root
from gzpaper.predict import Ensemble, predict_images
from gzpaper.serve import _Labelled, _look, _page
from gzpaper.tree import COLUMNS, InputError
from gzpaper.weights import released

EXAMPLES = sorted((root() / "data/example").glob("*.jpg"))
WEIGHTS = released()[:1]
needs_nicegui = pytest.mark.skipif(not find_spec("nicegui"), reason="the page's library is not installed: install gzpaper[serve]")


@pytest.fixture(scope="module")
def look(mock_folder, tmp_path_factory):
    "What the page asks: a function of the name and the bytes of an image."
    ensemble = Ensemble(WEIGHTS)
    return partial(_look, ensemble, _Labelled(mock_folder, ensemble, tmp_path_factory.mktemp("serve")))


def test_the_page_tells_what_predict_writes(look):
    table = predict_images(WEIGHTS, EXAMPLES[0].parent, progress=False).set_index("GalaxyID")[COLUMNS]
    for path in EXAMPLES[:2]:
        labels = look(path.name, path.read_bytes())[1]
        np.testing.assert_allclose(labels, table.loc[path.stem].to_numpy(), atol=1e-5)


def test_a_labelled_galaxy_is_most_like_itself_and_the_others_follow_in_order(look, mock_folder):
    images, _, _ = KaggleFolder(mock_folder).join()
    for row in (0, 7):
        _, _, similar = look("mine.jpg", images.read(row))
        names, cosines = zip(*(told.split(": ") for _, told, _ in similar))
        assert names[0] == str(images.ids[row]) and cosines[0] == "1.000" and len(set(names)) == 6
        assert [*cosines] == sorted(cosines, reverse=True) and float(cosines[1]) < 0.999


def test_the_features_of_a_folder_with_a_damaged_image_are_not_kept(damaged, tmp_path):
    bad = sorted(damaged.glob("images_training_rev1/*.jpg"))[30]
    bad.write_bytes(bad.read_bytes()[:3000])
    with pytest.raises(InputError) as error:
        _Labelled(damaged, Ensemble(WEIGHTS), tmp_path / "out")
    assert_says(str(error.value), bad.name, "fetch it again or remove it")
    assert_whole(tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_features_are_of_these_images_and_networks(damaged, tmp_path):
    for weights in (WEIGHTS, released()[1:2]):
        _Labelled(damaged, Ensemble(weights), tmp_path)
    first, *others = sorted(damaged.glob("images_training_rev1/*.jpg"))
    shutil.copy(others[0], first)
    _Labelled(damaged, Ensemble(WEIGHTS), tmp_path)
    assert len(list(tmp_path.glob("features-*.npy"))) == 3


def test_without_its_library_the_command_says_what_to_install(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    cli("serve").refused("nicegui", "pip install 'gzpaper[serve]'")


@needs_nicegui
def test_what_cannot_be_served_is_refused(cli, mock_folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cli("serve", "--port", port).refused(port, "in use", "--port")
    cli("serve", "--data", tmp_path / "nowhere").refused("nowhere", "name one with Kaggle's")
    cli("serve", "--data", mock_folder, "--out", mock_folder).refused(mock_folder, "name another folder")
    cli("serve", "--weights", tmp_path / "w.safetensors").refused("w.safetensors", "does not exist")


@needs_nicegui
def test_a_user_sees_the_tree_or_why_not(look):
    from nicegui import ui
    from nicegui.testing import user_simulation

    async def use_the_page():
        async with user_simulation(root=partial(_page, look, EXAMPLES)) as user:
            await user.open("/")
            upload = user.find(ui.upload).elements.pop()
            for name, data, told in (("mine.png", b"none", "mine.png is not an image: fetch it again or remove it"),
                                     ("mine.gif", b"GIF89a", "mine.gif ends in none of .jpg"),
                                     ("mine.jpg", EXAMPLES[0].read_bytes(), "Is there anything odd?")):
                await upload.handle_uploads([ui.upload.SmallFileUpload(name, "", data)])
                await user.should_see(told, retries=100)
            await user.should_see("Most similar labelled galaxies")
            await user.should_not_see("mine.gif ends in none")

    asyncio.run(use_the_page())
