"""The report in Debian's Chromium at the widths of a phone and a desk: measured, and looked at.

Chromium is installed where it is missing and apt-get can; else these tests are skipped.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from analysis import Analysis
from tests.simulated_study import VARIANTS, SimulatedStudy, failed, write_simulated_study

PHONE_PX, DESK_PX = 390, 1280
#: Taller than any page here, so that a screenshot shows it whole.
HEIGHT_PX = 14_000

#: Measures the page in the frame: a window itself cannot be as narrow as a phone's.
_MEASURE = """
const page = document.querySelector("iframe").contentDocument;
const width = page.documentElement.clientWidth;
const box = element => element.getBoundingClientRect();
const name = element => `${element.tagName} ${element.textContent.trim().slice(0, 40)}`;
const all = [...page.body.querySelectorAll("*")];
const outside = all.filter(e => !e.parentElement.closest(".scroll") && box(e).width
  && (box(e).right > width + 0.5 || box(e).left < -0.5));
const blocks = [...page.querySelectorAll("header > *, section > *, figure > *")];
const overlapping = blocks.filter(e => e.nextElementSibling && box(e.nextElementSibling).height
  && box(e.nextElementSibling).top < box(e).bottom - 1);
document.documentElement.dataset.measured = JSON.stringify({
  width, page_width: page.documentElement.scrollWidth, height: page.body.scrollHeight,
  outside: outside.map(name), overlapping: overlapping.map(name),
  broken: [...page.images].filter(i => !i.naturalWidth).length,
  images: [...page.images].map(i => [box(i).left, box(i).top, box(i).right, box(i).bottom]),
  tables: [...page.querySelectorAll(".scroll")].map(e => [e.clientWidth, box(e).right]),
});
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a browser made of a page: the page's own measures, its picture, its complaints."""

    measured: dict[str, Any]
    picture: NDArray[np.uint8]
    console: list[str]

    @property
    def faults(self) -> list[str]:
        """Everything wrong with the layout, in words."""
        found = [f"console: {line}" for line in self.console]
        if self.measured["page_width"] > self.measured["width"]:
            found.append(f"{self.measured['page_width']} px wide on {self.measured['width']}")
        found += [f"outside: {element}" for element in self.measured["outside"]]
        found += [f"overlapping: {element}" for element in self.measured["overlapping"]]
        if self.measured["broken"]:
            found.append(f"{self.measured['broken']} broken images")
        # Nothing is drawn at the very edge: it would be cut off.
        edges = np.concatenate([self.picture[:, :4], self.picture[:, -4:]], axis=1)
        if (edges < 250).any():
            found.append(f"drawn at the edge in row {int((edges < 250).any(axis=(1, 2)).argmax())}")
        for left, top, right, bottom in np.round(self.measured["images"]).astype(int):
            if self.picture[top:bottom, left:right].std() < 1:
                found.append(f"blank image at {left}, {top}")
        return found


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser, installed first where that is possible."""
    for attempt in ("there", "installed"):
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        if path is not None:
            return path
        if attempt == "there":
            _install_chromium()
    pytest.skip("apt-get installed chromium, but there is no such command")


def _install_chromium() -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("no chromium here, and no apt-get with the right to install it")
    wait = "-o DPkg::Lock::Timeout=120"
    installed = subprocess.run(
        f"apt-get {wait} update -qq; "
        f"apt-get {wait} install -y -qq --no-install-recommends chromium fonts-dejavu-core",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    if installed.returncode != 0:
        pytest.skip(f"chromium cannot be installed: {installed.stderr.strip()[-300:]}")


def look_at(page: str, width_px: int, chromium: str, folder: Path) -> Seen:
    """Show a page's HTML at this width."""
    frame = (
        '<!doctype html><html><body style="margin:0">'
        f'<iframe style="border:0;width:{width_px}px;height:{HEIGHT_PX}px"'
        f' srcdoc="{html.escape(page)}"></iframe>'
        f"<script>addEventListener('load', () => {{{_MEASURE}}});</script></body></html>"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    done = subprocess.run(
        [
            chromium,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-device-scale-factor=1"),
            *("--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
            f"--window-size={width_px},{HEIGHT_PX}",
            f"--screenshot={folder / 'page.png'}",
            "--dump-dom",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
    found = re.search(r'data-measured="([^"]*)"', done.stdout)
    assert found, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    measured = json.loads(html.unescape(found[1]))
    assert measured["width"] == width_px
    assert measured["height"] < HEIGHT_PX
    picture = imread(folder / "page.png")[: measured["height"], :width_px, :3]
    pixels = np.round(255 * picture).astype(np.uint8)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(measured=measured, picture=pixels, console=console)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with everything in it: long names, a failure, an unreadable record, signatures."""
    folder = tmp_path_factory.mktemp("results") / "variants"
    write_simulated_study(
        folder,
        SimulatedStudy(arms=VARIANTS, recordings=4),
        lambda record: failed(record) if record.trial_id == "avc-15min-seed1" else record,
    )
    (folder / "trials/scratch-15min-seed2/record.json").write_text("{")
    return Analysis.of([folder]).write(folder / "report").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("width_px", [PHONE_PX, DESK_PX])
def test_nothing_breaks_the_layout(
    report: str, chromium: str, tmp_path: Path, width_px: int
) -> None:
    seen = look_at(report, width_px, chromium, tmp_path)
    assert seen.faults == []
    assert len(seen.measured["images"]) == 7
    # Tables scroll within their place instead of widening the page.
    assert all(right <= width_px for _, right in seen.measured["tables"])
    # The answer stands on the first screen.
    ink = (seen.picture[:800].min(axis=2) < 128).mean()
    assert 0.01 < ink < 0.3


@pytest.mark.slow
def test_a_broken_page_is_noticed(report: str, chromium: str, tmp_path: Path) -> None:
    """The checks above can fail: each planted fault is found."""
    planted = (
        '<p style="width:700px;background:#ddd">too wide</p>'
        '<figure><h3 style="margin-bottom:-20px">over</h3><p>lap</p></figure>'
        '<img src="data:image/png;base64,AAAA" width="50" height="50">'
        '<script>console.error("planted")</script></main>'
    )
    seen = look_at(report.replace("</main>", planted), PHONE_PX, chromium, tmp_path)
    text = "\n".join(seen.faults)
    for fault in ("console: ", "planted", "px wide on 390", "outside: P too wide",
                  "overlapping: H3 over", "1 broken images", "drawn at the edge"):  # fmt: skip
        assert fault in text
