"""The page of `gzpaper serve` in a real browser: an image is dropped on it, at the width of a desktop and of a phone."""

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gzpaper.data import KaggleFolder
from gzpaper.paper import root

sync_api = pytest.importorskip("playwright.sync_api", reason="a browser is steered by playwright: pip install playwright")
pytest.importorskip("nicegui", reason="the page's library is not installed: install gzpaper[serve]")
from test_jupyterlab import chromium, free_port, wait_for  # noqa: E402

DROP = """(box, [name, data]) => {
    const transfer = new DataTransfer()
    transfer.items.add(new File([Uint8Array.from(atob(data), letter => letter.charCodeAt(0))], name))
    box.dispatchEvent(new DragEvent('dragover', {dataTransfer: transfer, bubbles: true}))
    const drop = new DragEvent('drop', {dataTransfer: transfer, bubbles: true})
    setTimeout(() => box.querySelector('.q-uploader__dnd').dispatchEvent(drop), 500)
}"""  # the element that takes the file is there once something is dragged over the box


@pytest.fixture(scope="module")
def address(mock_folder, tmp_path_factory):
    "The page, with labelled galaxies: its address."
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    command = [sys.executable, "-c", "from gzpaper.cli import main; main()", "serve", "--port", str(port), "--data", str(mock_folder)]
    env = os.environ | {"PYTHONPATH": str(root())}
    env.pop("PYTEST_CURRENT_TEST", None)  # with it, the library would wait for a test's server
    with open(folder / "serve.log", "w+") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        wait_for(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130
        log.seek(0)
        assert "Traceback" not in log.read()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(request, address):
    "The page in a browser: it asks no other machine for anything, and is not wider than the window."
    asked, executable = set(), chromium()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])  # a container's root has no sandbox
        opened = browser.new_page(viewport={"width": request.param, "height": 900})
        opened.on("request", lambda sent: asked.add(sent.url))
        opened.goto(address)
        yield opened
        assert opened.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        browser.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def drop(page, path: Path):
    "Drop a file on the box."
    box = page.locator(".q-uploader")
    box.evaluate(DROP, [path.name, base64.b64encode(path.read_bytes()).decode()])


def test_an_image_that_is_dropped_shows_its_tree_and_galaxies_like_it(page, mock_folder, tmp_path):
    images, _, _ = KaggleFolder(mock_folder).join()
    path = tmp_path / "mine.jpg"
    path.write_bytes(images.read(3))
    drop(page, path)
    page.get_by_text(f"{images.ids[3]}: 1.000").wait_for(timeout=60_000)
    assert page.get_by_role("progressbar").count() >= 3 and page.get_by_text("of the volunteers would be asked").count()
    widths = page.locator(".q-img").evaluate_all("pictures => pictures.map(picture => picture.clientWidth)")
    assert len(widths) > 18 and min(widths) > 40
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_an_example_that_is_chosen_and_an_image_that_cannot_be_used(page, tmp_path):
    page.get_by_role("button", name="mock-02").click()
    page.get_by_text("mock-02.jpg", exact=True).wait_for(timeout=60_000)
    path = tmp_path / "mine.png"
    path.write_text("no image")
    page.locator("input[type=file]").set_input_files(path)
    refused = page.get_by_role("alert").get_by_text("mine.png is not an image: fetch it again or remove it")
    refused.wait_for(timeout=60_000)
    assert not page.get_by_text("mock-02.jpg", exact=True).count()
