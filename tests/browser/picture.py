"""The panel as a picture: python tests/browser/picture.py outputs/laptop docs/probe.png"""

import sys
import tempfile
from pathlib import Path

import lab


def main(run: Path, picture: Path) -> None:
    """Run notebook 05 on the run in a JupyterLab, probe once, and photograph the panel."""
    with (
        tempfile.TemporaryDirectory() as home,
        lab.notebook_05(run.resolve(), Path(home)) as address,
        lab.browser() as chromium,
    ):
        page = chromium.new_page(viewport={"width": 1180, "height": 1600})
        panel = lab.run_all(page, address)
        panel.get_by_label("intent", exact=True).fill("birthday party for a 6 year old who loves dinosaurs")
        panel.get_by_role("button", name="Generate").click()
        panel.locator("article").first.wait_for()
        panel.screenshot(path=picture)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
