"""Images of strangers: what is refused, what their metadata says, and what they are turned into."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import pytest
from pictures import xmp
from PIL import Image

from udrl_utils.search import images
from udrl_utils.search.images import BadImage, Metadata, open_image


def iptc(title: str, keywords: list[str]) -> bytes:
    """An APP13 segment as photo agencies write it."""
    fields = [(5, title), *((25, word) for word in keywords)]
    data = b"".join(b"\x1c\x02" + struct.pack(">BH", n, len(text.encode())) + text.encode() for n, text in fields)
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(data)) + data + b"\0" * (len(data) % 2)
    body = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def test_xmp_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "one.jpg"
    Image.new("RGB", (20, 20), "red").save(file, xmp=xmp("Koi & <pond>", ["koi", "fish", "koi"]))
    assert open_image(file)[1] == Metadata("Koi & <pond>", ("koi", "fish"))


def test_iptc_is_read(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "JPEG")
    raw = buffer.getvalue()
    (tmp_path / "one.jpg").write_bytes(raw[:2] + iptc("Blåbær", ["berry", "blue"]) + raw[2:])
    assert open_image(tmp_path / "one.jpg")[1] == Metadata("Blåbær", ("berry", "blue"))


def test_exif_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x9C9E] = "A harbour", "boats;sea\0".encode("utf-16-le")
    Image.new("RGB", (20, 20), "blue").save(tmp_path / "one.jpg", exif=exif)
    assert open_image(tmp_path / "one.jpg")[1] == Metadata("A harbour", ("boats", "sea"))


def test_broken_metadata_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "one.jpg", xmp=b"<x:xmpmeta <not XML")
    image, metadata = open_image(tmp_path / "one.jpg")
    assert image.size == (20, 20) and metadata == Metadata()


def test_entities_in_metadata_are_not_expanded(tmp_path: Path) -> None:
    evil = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>' + xmp("&a;", ["x"]).replace(b"&amp;", b"&")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "one.jpg", xmp=evil)
    assert open_image(tmp_path / "one.jpg")[1] == Metadata()


def test_an_image_becomes_an_intent_by_its_title_or_keywords() -> None:
    image = Image.new("RGB", (30, 10))
    assert images.plain(image, Metadata("Night Sea", ("owl",))) == "night sea"
    assert images.plain(image, Metadata("", ("owl", "moon"))) == "owl moon"
    assert len(images.plain(image, Metadata("word " * 50)).split()) == 20
    with pytest.raises(BadImage, match="no title and no keywords"):
        images.plain(image, Metadata())
