"""Take the pictures of the report that the documentation shows, with an installed Chromium.

make demo
.venv/bin/python scripts/screenshots.py caltune-demo/report.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageChops

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from chromium import Chromium, find_chromium  # noqa: E402

LARGEST = 300_000  # bytes
# Name: width of the window, dark or not, the first and the last element that is shown.
PICTURES = {
    "report": (1180, False, "header", "main tr:nth-child(5)"),
    "report-dark": (1180, True, "header", "main tr:nth-child(5)"),
    "report-phone": (390, False, "header", ".verdict li:nth-child(2)"),
    "reliability": (1180, False, "section:has(.key)", "section:has(.key)"),
    "before-and-after": (1180, False, "h2=Before and after", "h2=Before and after"),
    "coverage": (1180, False, "section:has(.beside)", "section:has(.beside)"),
    "course": (1180, False, "h2=The course of training", "h2=The course of training"),
}
MARGIN = 16


def element(selector: str) -> str:
    """JavaScript for the element of a CSS selector, or for the section with the heading after "h2="."""
    if not selector.startswith("h2="):
        return f"document.querySelector({selector!r})"
    return f"[...document.querySelectorAll('h2')].find((one) => one.innerText == {selector[3:]!r})?.closest('section')"


def main() -> None:
    """Write each picture as a PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="the page that `caltune demo` wrote")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    settings = parser.parse_args()
    executable = find_chromium()
    if executable is None:
        parser.error("no Chromium is installed")
    settings.output.mkdir(parents=True, exist_ok=True)
    with Chromium(executable) as browser:
        for name, (width, dark, first, last) in PICTURES.items():
            browser.open(settings.report.resolve().as_uri(), width=width, dark=dark)
            top, bottom = browser.run(
                f"[{element(first)}?.getBoundingClientRect().top, {element(last)}?.getBoundingClientRect().bottom]"
            )
            if top is None or bottom is None:
                parser.error(f"{settings.report}: it must have a part for {name}")
            path = settings.output / f"{name}.png"
            y = max(top - MARGIN, 0)
            browser.screenshot(path, clip={"x": 0, "y": y, "width": width, "height": bottom - y, "scale": 1})
            save_small(path)
            print(f"{path}: {path.stat().st_size:,} bytes")


def save_small(path: Path) -> None:
    """Cut off what is empty around a picture, but for a margin."""
    picture = Image.open(path).convert("RGB")
    empty = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(picture, empty).getbbox()
    box = (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN)
    cut = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), picture.getpixel((0, 0)))
    cut.paste(picture, (-box[0], -box[1]))
    cut.save(path, optimize=True)
    assert path.stat().st_size < LARGEST, f"{path} has {path.stat().st_size} bytes"


if __name__ == "__main__":
    main()
