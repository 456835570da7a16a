"""Hostile catalogues: every bad item is left out with its reason, nothing is raised, nothing runs in the page."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import pandas as pd
import pytest
from markupsafe import escape
from pictures import xmp
from PIL import Image, PngImagePlugin

from udrl_utils.errors import RunError, SettingsError
from udrl_utils.search.catalogue import as_table, load_catalogue, read_folder, read_items
from udrl_utils.search.images import MAX_TEXT
from udrl_utils.search.page import results_page
from udrl_utils.settings import SearchSettings, resolve

SCRIPT = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
SVG = "<svg/onload=alert(3)>"
ARABIC, EMOJI = "\u202eبطاقة عيد ميلاد", "🦊🎉 party"


def picture(file: Path, title: str = "", keywords: tuple[str, ...] = ()) -> bytes:
    Image.effect_noise((60, 40), 50).convert("RGB").save(file, xmp=xmp(title, keywords))
    return file.read_bytes()


def png_of(width: int, height: int) -> bytes:
    """A few bytes that claim to be a picture of that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b"\0" * 1000), b"IEND": b""}
    written = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    whole = picture(folder / "good.jpg", "koi pond", ("koi",))
    picture(folder / "script.jpg", SCRIPT, (SVG, "fox"))
    picture(folder / "arabic.jpg", ARABIC)
    picture(folder / "emoji.jpg", EMOJI)
    caption = PngImagePlugin.PngInfo()
    caption.add_itxt("XML:com.adobe.xmp", xmp("word " * 100_000, ()).decode())
    Image.new("RGB", (60, 40)).save(folder / "long.png", pnginfo=caption)
    picture(folder / "quiet_harbour.png")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    half, quarter = len(whole) // 2, len(whole) // 4
    (folder / "noise.jpg").write_bytes(whole[:half] + b"\xff" * quarter + whole[half + quarter :])
    (folder / "empty.jpg").touch()
    (folder / "bomb.png").write_bytes(png_of(60_000, 60_000))
    (folder / "large.png").write_bytes(png_of(12_000, 12_000))
    (folder / "really_a_jpeg.png").write_bytes(whole)
    (folder / "drawing.svg").write_text(SVG)
    (folder / "page.jpg").write_text(SCRIPT)
    (folder / "good.jpeg").write_bytes(whole)
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    return folder


def test_bad_images_are_left_out_and_counted(hostile: Path) -> None:
    rows, counts = read_folder(hostile)
    assert {row["id"] for row in rows} == {"good", "script", "arabic", "emoji", "long", "quiet_harbour"}
    assert counts == {
        "empty file": 1,
        "more than 64 million pixels": 2,
        "suffix of another format": 1,
        "not named as an image": 1,
        "not an image of a known format": 1,
        "duplicate id": 1,
        "truncated": 1,
        "corrupt": 1,
        "title cut (kept)": 1,
    }
    titles = {row["id"]: row["title"] for row in rows}
    assert titles["quiet_harbour"] == "quiet harbour", "an item without metadata goes by its file's name"
    assert len(titles["long"]) <= MAX_TEXT and "\u202e" not in titles["arabic"] and "🦊" in titles["emoji"]


def test_nothing_runs_in_the_page(hostile: Path) -> None:
    items = as_table(read_folder(hostile)[0])
    page = results_page(items, SCRIPT, range(len(items)), [SCRIPT, SVG])
    tags = {"p", "b", "details", "summary", "ul", "li", "div", "figure", "img", "figcaption"}
    assert set(re.findall(r"<(\w+)", page)) <= tags
    assert not re.search(r"<[^>]*\son\w+\s*=", page), "no element has an event handler"
    assert re.findall(r'src="(.{15})', page) == ["data:image/jpeg"] * len(items)
    assert escape(SCRIPT) in page


def test_bad_rows_of_a_table_are_left_out_and_counted(hostile: Path, tmp_path: Path) -> None:
    rows = [
        ("a", "koi pond", "koi; pond", "images/good.jpg"),
        ("a", "koi pond again", "", ""),
        ("b", "", "", ""),
        ("", "no name", "", ""),
        ("c", "lost", "", "images/missing.jpg"),
        ("e", "words " * 100_000, "x," * 100_000, ""),
        ("f", "passwords", "", "../../../../../../../../etc/passwd"),
    ]
    table = pd.DataFrame(rows, columns=["id", "title", "keywords", "image"])
    table.to_csv(tmp_path / "items.csv", index=False)
    found, counts = read_items(str(tmp_path / "items.csv"), 0, tmp_path / "made")
    assert [(row["id"], row["keywords"]) for row in found] == [("a", "koi, pond"), ("e", "x")]
    assert sum(counts.values()) - counts["title cut (kept)"] == len(rows) - 2
    assert counts["duplicate id"] == counts["no id"] == 1


def test_a_catalogue_with_nothing_to_show_is_refused(smoke: dict, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(RunError, match=r"holds no item that can be shown .*'empty file': 1"):
        load_catalogue(resolve(SearchSettings, smoke | {"catalog": str(tmp_path)}), tmp_path / "out")


def test_a_catalogue_that_cannot_be_read_is_refused(smoke: dict, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("name,title\n1,koi\n")
    with pytest.raises(SettingsError, match="has no column 'id'"):
        load_catalogue(resolve(SearchSettings, smoke | {"catalog": str(tmp_path / "items.csv")}), tmp_path / "out")
