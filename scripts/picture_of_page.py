"""The README's picture of a page that ``lambdanets explain`` wrote, by a headless Chromium.

lambdanets explain lambda_resnet_tiny.fashion_mnist
python scripts/picture_of_page.py explain.html docs/images/explain.png
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main(page: Path, picture: Path) -> None:
    """Point at a query of the first layer, and take the maps as a picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1000, "height": 540}, device_scale_factor=1.5)
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached")
        box = tab.locator("#query").bounding_box()
        if box is None:
            raise ValueError(f"{page} shows no query; give a page that `lambdanets explain` wrote")
        tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"])
        tab.wait_for_timeout(500)
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
