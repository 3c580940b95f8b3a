"""A notebook of the paper as its readers use it: opened in JupyterLab in a real browser and run from top to bottom."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from gzpaper.chain import notebook_path, root

sync_api = pytest.importorskip("playwright.sync_api", reason="a browser is steered by playwright: pip install playwright")
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: install gzpaper[dev]")
pytest.importorskip("galsim", reason="mock galaxies need GalSim: install gzpaper[paper]")
TOKEN = "gzpaper"
MINUTES = 10  # for all cells, on a machine that does other things too


def chromium() -> str:
    "Debian's Chromium, else Playwright's own."
    with sync_api.sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or playwright.chromium.executable_path
    if not Path(found).exists():
        pytest.skip("there is no browser: apt-get install chromium, or playwright install chromium")
    return found


def free_port() -> int:
    "A port that nobody listens on."
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def jupyterlab(folder: Path):
    "JupyterLab on a folder: its address. What the paper makes goes to the folder too, and all cells are drawn, seen or not."
    settings, port = folder / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings", free_port()
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", f"--LabApp.user_settings_dir={folder / 'settings'}"]
    own = {name: str(folder / name) for name in ("GZPAPER_RUNS", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    with open(folder / "jupyterlab.log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | own | {"PYTHONPATH": str(root())}, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/api?token={TOKEN}", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address: str, server: subprocess.Popen):
    "Until a server answers; an error if it ends, or does not within two minutes."
    for _ in range(240):
        try:
            return urlopen(address, timeout=5).close()
        except (URLError, TimeoutError):
            assert server.poll() is None, "the server has ended"
            time.sleep(0.5)
    raise AssertionError("the server does not answer")


def test_the_first_section_runs_from_top_to_bottom_and_shows_its_figure(tmp_path):
    "On a copy: the notebook in the repository is not written to."
    before = notebook_path("01_dataset").read_bytes()
    shutil.copy(notebook_path("01_dataset"), tmp_path)
    executable, most = chromium(), MINUTES * 60_000
    count = sum(cell["cell_type"] == "code" for cell in json.loads(before)["cells"])
    with jupyterlab(tmp_path) as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])  # a container's root has no sandbox
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{address}/lab/tree/01_dataset.ipynb?token={TOKEN}")
        cells = page.locator(".jp-NotebookPanel .jp-CodeCell")
        sync_api.expect(cells).to_have_count(count, timeout=most)
        sync_api.expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=most)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        done = cells.last.locator(".jp-InputPrompt", has_text=f"[{count}]:")  # a cell is numbered once it is done
        errors = page.locator(".jp-OutputArea-output", has_text="Traceback (most recent call last)")
        done.or_(errors).first.wait_for(timeout=most)
        assert not errors.count(), errors.all_inner_texts()
        figures = page.locator(".jp-NotebookPanel .jp-RenderedImage img")
        figures.first.scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / "jupyterlab.png")
        assert figures.count() and all(figure.bounding_box()["width"] > 100 for figure in figures.all())
        browser.close()
    made = {path.stem for path in tmp_path.glob("GZPAPER_RUNS/smoke/figures/*.png")}
    assert made and notebook_path("01_dataset").read_bytes() == before
