"""The documentation in a real browser, at the width of a desktop and of a phone: nothing is wider than the page, and search finds."""

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gzpaper.paper import root

sync_api = pytest.importorskip("playwright.sync_api", reason="a browser is steered by playwright: pip install playwright")
pytest.importorskip("myst_nb", reason="the documentation is not installed: install gzpaper[docs]")
pytest.importorskip("furo", reason="the documentation is not installed: install gzpaper[docs]")
from test_jupyterlab import chromium  # noqa: E402


class Quiet(SimpleHTTPRequestHandler):
    "A server of files that says nothing."
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built anew and served: its folder and its address."
    made = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "docs", "-d", made.parent / "doctrees", ".", made]
    subprocess.run(command, cwd=root(), check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=made))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(request):
    "A page of a browser, which reaches this machine alone."
    executable = chromium()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])  # a container's root has no sandbox
        opened = browser.new_page(viewport={"width": request.param, "height": 900})
        opened.route("**/*", lambda route: route.continue_() if "//127.0.0.1" in route.request.url else route.abort())
        yield opened
        browser.close()


def test_no_page_is_wider_than_the_window(site, page):
    made, address = site
    wide = {}
    for path in sorted(made.rglob("*.html")):
        page.goto(f"{address}/{path.relative_to(made)}")
        width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if width > 0:
            wide[str(path.relative_to(made))] = width
    assert wide == {}


@pytest.mark.parametrize("word", ["predict", "tree_softmax", "predict_images"])
def test_search_finds(site, page, word):
    page.goto(f"{site[1]}/search.html?q={word}")
    page.locator("#search-results li").first.wait_for(timeout=30_000)
    page.get_by_text("Search finished").wait_for(timeout=30_000)
    page.locator("#search-results li a").first.click()
    page.wait_for_load_state()
    assert word in page.content()
