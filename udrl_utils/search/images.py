"""Images from strangers: opened safely, their metadata read, and turned into intents.

In go image files of any origin; out come RGB images, titles and keywords, and intents as text. A describer is a
function (image, metadata) -> intent: `plain`, which needs no weights, a captioner, or zero-shot tags. Nothing here
knows the catalogue.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageColor, ImageStat, IptcImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base

from udrl_utils.errors import loading
from udrl_utils.machine import device_and_dtype
from udrl_utils.settings import SearchSettings

FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "GIF": (".gif",), "TIFF": (".tif", ".tiff")}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = 64_000_000
MAX_BYTES = 64_000_000
MAX_TEXT = 300  # characters of a title; longer ones are cut
MAX_KEYWORDS = 40
INTENT_WORDS = 20  # words of an intent that comes from an image, at most


class BadImage(ValueError):
    """A file that is not shown; the text is the reason, in a few words."""


@dataclass(frozen=True)
class Metadata:
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


def xmp(title: str, keywords: Collection[str]) -> bytes:
    """An XMP packet with a Dublin Core title and keywords, as photo programs write it into a file."""
    words = "".join(f"<rdf:li>{escape(word)}</rdf:li>" for word in keywords)
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f'<dc:title><rdf:Alt><rdf:li xml:lang="x-default">{escape(title)}</rdf:li></rdf:Alt></dc:title>'
        f"<dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def clean_text(text: str, limit: int = MAX_TEXT) -> str:
    """One line of visible characters, at most `limit` of them."""
    visible = "".join(c if c.isprintable() else " " for c in str(text)[: 20 * limit])
    return " ".join(visible.split())[:limit].strip()


def clean_keywords(keywords: Sequence[str]) -> tuple[str, ...]:
    """Distinct keywords in lower case, each cleaned, empty ones dropped, at most MAX_KEYWORDS."""
    cleaned = (clean_text(word)[:60].lower() for word in keywords[: 10 * MAX_KEYWORDS])
    return tuple(filter(None, dict.fromkeys(cleaned)))[:MAX_KEYWORDS]


# A color goes by the name of the nearest of these.
COLORS = {
    **{"black": "#101010", "gray": "#808080", "white": "#f8f8f8", "red": "#d62828", "orange": "#f28030"},
    **{"brown": "#6b4020", "yellow": "#f8d030", "green": "#409040", "teal": "#40b0a0", "blue": "#3060d0"},
    **{"navy": "#182050", "purple": "#8050b0", "pink": "#f090b0", "beige": "#f0e0c8"},
    **{"lime": "#90c058", "lavender": "#c8b8e0", "silver": "#c8c8c8", "magenta": "#b01860"},
}


def main_colors(image: Image.Image, count: int) -> list[str]:
    """Names of the image's `count` most common colors, the most common first."""
    named = Image.new("P", (1, 1))
    named.putpalette([channel for color in COLORS.values() for channel in ImageColor.getrgb(color)])
    shares = image.resize((64, 64)).quantize(palette=named, dither=Image.Dither.NONE).getcolors()
    return [list(COLORS)[index] for _, index in sorted(shares, reverse=True)[:count]]


def plain(image: Image.Image, metadata: Metadata) -> str:
    """An intent without any weights: title or keywords, then brightness, shape and main colors."""
    words = (metadata.title or " ".join(metadata.keywords[:6])).lower().split()[:12]
    dark = ["dark"] * (ImageStat.Stat(image.convert("L")).mean[0] < 64)
    ratio = image.width / image.height
    shape = "wide" if ratio > 1.15 else "tall" if ratio < 0.87 else "square"
    return " ".join([*words, *dark, shape, "in", " and ".join(main_colors(image, 2))])


def captioner(name: str) -> Describer:
    """A describer by a transformers model that writes captions from pixels (BLIP-class), by Hub id or path.

    Raises: SettingsError when the model cannot be loaded.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with loading(f"parameter captioner={name!r} is neither a Hub id nor a folder"):
        processor, model = AutoProcessor.from_pretrained(name), AutoModelForImageTextToText.from_pretrained(name)
    model = model.float().to(device_and_dtype()[0]).eval()

    def describe(image: Image.Image, _: Metadata) -> str:
        with torch.inference_mode():
            inputs = processor(images=image, return_tensors="pt").to(model.device)
            ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        caption = processor.batch_decode(ids, skip_special_tokens=True)[0]
        return " ".join(caption.lower().split()[:INTENT_WORDS])

    return describe


class Clip:
    """A model with images and texts in one vector space (CLIP- or SigLIP-class), by Hub id or path.

    Raises: SettingsError when the model cannot be loaded.
    """

    def __init__(self, name: str):
        from sentence_transformers import SentenceTransformer

        with loading(f"parameter image_encoder={name!r} is neither a Hub id nor a folder"):
            self.model = SentenceTransformer(name, device=device_and_dtype()[0])

    def __call__(self, items: Sequence[str] | Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors of texts or images, shape (items, width), float32."""
        return self.model.encode(list(items), normalize_embeddings=True, show_progress_bar=False)

    def tagger(self, tags: Sequence[str], count: int = 4) -> Describer:
        """A describer that names the `count` tags nearest to an image."""
        known = self([f"a picture of {tag}" for tag in tags])
        return lambda image, _: " ".join(tags[k] for k in (known @ self([image])[0]).argsort()[::-1][:count])


def describer_of(settings: SearchSettings, tags: Sequence[str]) -> Describer:
    """The captioner that the settings name, else the image encoder as a tagger with `tags`, else `plain`."""
    if settings.captioner:
        return captioner(settings.captioner)
    return Clip(settings.image_encoder).tagger(tags) if settings.image_encoder else plain


def intent_of(path: Path | str, describe: Describer) -> str:
    """The intent that an image file is turned into. Raises: BadImage."""
    return describe(*open_image(Path(path)))
