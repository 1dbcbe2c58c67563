"""The documentation site: whole, without warnings, and with nothing from elsewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("furo", reason="needs pip install '.[docs]'")
pytest.importorskip("myst_parser", reason="needs pip install '.[docs]'")

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md") if path.stem != "README")


class Loaded(HTMLParser):
    """Addresses that a browser loads by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        names = ("src", "srcset", "data", "poster") if tag != "link" else ("href",)
        self.addresses += [value for name in names if (value := found.get(name))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does it."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-E", "-d", folder / "doctrees"]
    finished = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, DOCS, folder / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return folder / "html"


def test_every_page_is_in_the_navigation_and_on_the_first_page(site: Path) -> None:
    first = (site / "index.html").read_text()
    listed = (DOCS / "README.md").read_text()
    for name in PAGES:
        assert (site / f"{name}.html").is_file()
        assert f'class="reference internal" href="{name}.html"' in first
        assert f"]({name}.md)" in listed


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert len(loaded.addresses) > 3
        assert [a for a in loaded.addresses if re.match(r"\s*(https?:)?//", a)] == [], page.name
    for path in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not re.search(r"(url\(|@import|href=)\s*[\"']?(https?:)?//", path.read_text()), path


def test_links_between_pages_lead_to_what_was_built(site: Path) -> None:
    for page in site.glob("*.html"):
        for target in re.findall(r'href="([^"#?:]+)[^":]*"', page.read_text()):
            assert (site / target).exists(), f"{page.name}: {target}"


def test_the_reference_has_what_the_sources_say(site: Path) -> None:
    assert "train/&lt;class&gt;/*" in (site / "commands.html").read_text()
    assert "--validation" in (site / "commands.html").read_text()
    python = (site / "api.html").read_text()
    for name in ("predictor.Predictor.attempt", "prediction.Certificate", "errors.ImageError"):
        assert f'id="lipdeploy.{name}"' in python
