"""Images from strangers: files of any origin go in, RGB images, titles, keywords and intents come out.

A describer is a function (image, metadata) -> intent, such as `plain`. Nothing here knows the catalogue.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, IptcImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base

FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "GIF": (".gif",), "TIFF": (".tif", ".tiff")}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = MAX_BYTES = 64_000_000
MAX_TEXT = 300  # characters of a title; longer ones are cut
MAX_KEYWORDS = 40
INTENT_WORDS = 20  # words of an intent that comes from an image, at most


class BadImage(ValueError):
    """A file that is not shown; the text is the reason, in a few words."""


class Metadata(NamedTuple):
    """The title ('' for none) and the keywords that an image file carries."""

    title: str = ""
    keywords: tuple[str, ...] = ()


Describer = Callable[[Image.Image, Metadata], str]


def open_image(path: Path) -> tuple[Image.Image, Metadata]:
    """The decoded image, in RGB, and its metadata.

    Refused before anything is decoded: formats other than FORMATS, a suffix that belongs to another format, files
    larger than MAX_BYTES, images of more than MAX_PIXELS. Raises: BadImage with the reason.
    """
    too_large = f"more than {MAX_PIXELS // 1_000_000} million pixels"
    try:
        size = path.stat().st_size
        if not size:
            raise BadImage("empty file")
        if size > MAX_BYTES:
            raise BadImage(f"file of more than {MAX_BYTES // 1_000_000} MB")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images, which are refused below
            with Image.open(path, formats=tuple(FORMATS)) as image:
                if path.suffix.lower() not in FORMATS[image.format]:
                    raise BadImage("suffix of another format")
                if image.width * image.height > MAX_PIXELS:
                    raise BadImage(too_large)
                metadata = read_metadata(image)
                return image.convert("RGB"), metadata
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(too_large) from None
    except UnidentifiedImageError:
        raise BadImage("not an image of a known format") from None
    except Exception as error:  # decoders raise errors of many types on broken files
        raise BadImage("truncated" if "truncated" in str(error) else "corrupt") from None


def read_metadata(image: Image.Image) -> Metadata:
    """Title and keywords from XMP, IPTC or EXIF, the first that has them; unreadable metadata counts as missing."""
    titles, keywords = [], []
    for read in (_xmp, _iptc, _exif):
        try:
            title, words = read(image)
        except Exception:  # metadata may be broken in any way
            continue
        titles.append(clean_text(title, 10 * MAX_TEXT))
        keywords.append(clean_keywords(words))
    return Metadata(next(filter(None, titles), ""), next(filter(None, keywords), ()))


def _xmp(image: Image.Image) -> tuple[str, list[str]]:
    found = image.getxmp()["xmpmeta"]["RDF"]["Description"]
    parts = {name: value for part in (found if isinstance(found, list) else [found]) for name, value in part.items()}
    title = _texts(parts.get("title")) or _texts(parts.get("description"))
    return " ".join(title[:1]), _texts(parts.get("subject"))


def _texts(value: Any) -> list[str]:
    """Texts in an XMP value, at any depth of its bags, sequences and language alternatives."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    if isinstance(value, dict):
        return [text for name, part in value.items() if name != "lang" for text in _texts(part)]
    return []


def _iptc(image: Image.Image) -> tuple[str, list[str]]:
    found = IptcImagePlugin.getiptcinfo(image) or {}
    title, caption, words = (found.get((2, number), b"") for number in (5, 120, 25))
    return _decoded(title or caption), [_decoded(word) for word in (words if isinstance(words, list) else [words])]


def _exif(image: Image.Image) -> tuple[str, list[str]]:
    found = image.getexif()
    words = found.get(Base.XPKeywords, b"")
    text = bytes(words).decode("utf-16-le").rstrip("\0") if words else ""
    title = found.get(Base.ImageDescription, "")
    return _decoded(title) if isinstance(title, bytes) else title, text.split(";")


def _decoded(value: bytes | list[bytes]) -> str:
    return (value[0] if isinstance(value, list) else value).decode("utf-8", "replace")


def clean_text(text: Any, limit: int = MAX_TEXT) -> str:
    """One line of visible characters, at most `limit` of them."""
    visible = "".join(c if c.isprintable() else " " for c in str(text)[: 20 * limit])
    return " ".join(visible.split())[:limit].strip()


def clean_keywords(keywords: Sequence[Any]) -> tuple[str, ...]:
    """Distinct keywords in lower case, each cleaned, empty ones dropped, at most MAX_KEYWORDS."""
    cleaned = (clean_text(word)[:60].lower() for word in keywords[: 10 * MAX_KEYWORDS])
    return tuple(filter(None, dict.fromkeys(cleaned)))[:MAX_KEYWORDS]


def plain(image: Image.Image, metadata: Metadata) -> str:
    """The image's title, or else its keywords, as an intent. Raises: BadImage where it has neither."""
    found = (metadata.title or " ".join(metadata.keywords[:6])).lower().split()[:INTENT_WORDS]
    if not found:
        raise BadImage("it carries no title and no keywords, and parameter captioner names no model that describes it")
    return " ".join(found)
