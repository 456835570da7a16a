"""Images that nobody vouches for: opened safely, their metadata read, and what an image is turned into as an intent.

Three ways to an intent have one interface, `describe(image) -> str`: metadata and colors (no weights), a captioner, and
zero-shot tags.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from udrl_utils.machine import device_and_dtype
from udrl_utils.settings import SearchSettings, loading

if TYPE_CHECKING:
    import numpy
    from PIL import Image

FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "GIF": (".gif",), "TIFF": (".tif", ".tiff")}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MOST_PIXELS = 64_000_000
MOST_BYTES = 64_000_000
LONGEST_TEXT = 300  # characters of a title; captions beyond are cut
MOST_KEYWORDS = 40


class BadImage(ValueError):
    """A file that is not shown; its text is the reason, in few words."""


@dataclass(frozen=True)
class Metadata:
    """What an image file says of itself: a title, '' for none, and keywords."""

    title: str = ""
    keywords: tuple[str, ...] = ()


def open_image(path: Path) -> tuple[Image.Image, Metadata]:
    """The decoded image, in RGB, and its metadata.

    Refused before anything is decoded: other formats than FORMATS, a suffix that belongs to another format, files
    larger than MOST_BYTES, images of more than MOST_PIXELS. Raises: BadImage with the reason.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        size = path.stat().st_size
        if not size:
            raise BadImage("empty file")
        if size > MOST_BYTES:
            raise BadImage(f"file of more than {MOST_BYTES // 1_000_000} MB")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own remarks on odd files, and on bombs, which are refused below
            with Image.open(path, formats=tuple(FORMATS)) as image:
                if path.suffix.lower() not in FORMATS[image.format]:
                    raise BadImage("suffix of another format")
                if image.width * image.height > MOST_PIXELS:
                    raise BadImage(f"more than {MOST_PIXELS // 1_000_000} million pixels")
                metadata = read_metadata(image)
                return image.convert("RGB"), metadata
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MOST_PIXELS // 1_000_000} million pixels") from None
    except UnidentifiedImageError:
        raise BadImage("not an image of a known format") from None
    except Exception as error:  # decoders raise whatever they like on broken files
        raise BadImage("truncated" if "truncated" in str(error) else "corrupt") from None


def read_metadata(image: Image.Image) -> Metadata:
    """Title and keywords out of XMP, IPTC and EXIF, the first that has them; what is unreadable counts as missing."""
    sources = [_quietly(read, image) for read in (_xmp, _iptc, _exif)]
    title = next((source.title for source in sources if source.title), "")
    return Metadata(title, next((source.keywords for source in sources if source.keywords), ()))


def _quietly(read: Any, image: Image.Image) -> Metadata:
    try:
        title, keywords = read(image)
    except Exception:  # metadata of strangers comes in any state of repair
        return Metadata()
    return Metadata(clean_text(title, 10 * LONGEST_TEXT), clean_keywords(keywords))


def _xmp(image: Image.Image) -> tuple[str, list[str]]:
    found = image.getxmp()["xmpmeta"]["RDF"]["Description"]
    parts = {name: value for part in (found if isinstance(found, list) else [found]) for name, value in part.items()}
    title = _texts(parts.get("title")) or _texts(parts.get("description"))
    return " ".join(title[:1]), _texts(parts.get("subject"))


def _texts(value: Any) -> list[str]:
    """Texts in an XMP value, however deep in its bags, sequences and language alternatives."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    if isinstance(value, dict):
        return [text for name, part in value.items() if name != "lang" for text in _texts(part)]
    return []


def _iptc(image: Image.Image) -> tuple[str, list[str]]:
    from PIL import IptcImagePlugin

    found = IptcImagePlugin.getiptcinfo(image) or {}
    title, caption, words = (found.get((2, number), b"") for number in (5, 120, 25))
    return _decoded(title or caption), [_decoded(word) for word in (words if isinstance(words, list) else [words])]


def _exif(image: Image.Image) -> tuple[str, list[str]]:
    from PIL.ExifTags import Base

    found = image.getexif()
    words = found.get(0x9C9E, b"")  # XPKeywords, in UTF-16
    text = bytes(words).decode("utf-16-le").rstrip("\0") if words else ""
    title = found.get(Base.ImageDescription, "")
    return _decoded(title) if isinstance(title, bytes) else title, text.split(";")


def _decoded(value: bytes | list[bytes]) -> str:
    return (value[0] if isinstance(value, list) else value).decode("utf-8", "replace")


def clean_text(text: str, most: int = LONGEST_TEXT) -> str:
    """One line of visible characters, at most `most` of them."""
    visible = "".join(c if c.isprintable() else " " for c in str(text)[: 20 * most])
    return " ".join(visible.split())[:most].strip()


def clean_keywords(keywords: Sequence[str]) -> tuple[str, ...]:
    """Distinct keywords without those that are empty, each cleaned, at most MOST_KEYWORDS."""
    cleaned = (clean_text(word)[:60].lower() for word in keywords[: 10 * MOST_KEYWORDS])
    return tuple(filter(None, dict.fromkeys(cleaned)))[:MOST_KEYWORDS]


# Hue in degrees from which a color goes by each name.
HUES = (
    (0, "red"),
    (16, "orange"),
    (42, "yellow"),
    (68, "green"),
    (165, "teal"),
    (195, "blue"),
    (255, "purple"),
    (300, "pink"),
    (345, "red"),
)


def color_name(red: int, green: int, blue: int) -> str:
    """A color in one word, from its hue, saturation and lightness; channels 0..255."""
    import colorsys

    hue, light, full = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    if light > 0.93 or (light > 0.85 and full < 0.3):
        return "white"
    if light < 0.13:
        return "black"
    if full < 0.13:
        return "gray"
    name = [name for start, name in HUES if 360 * hue >= start][-1]
    if name in ("red", "orange", "yellow") and light < 0.38 and full < 0.75:
        return "brown"
    if name == "blue" and light < 0.25:
        return "navy"
    return {"orange": "beige", "yellow": "cream"}.get(name, name) if light > 0.8 else name


def palette(image: Image.Image, count: int = 3) -> list[str]:
    """Names of the image's main colors, the most common first."""
    small = image.resize((64, 64)).quantize(12)
    colors, shares = small.getpalette(), {}
    for pixels, index in small.getcolors():
        name = color_name(*colors[3 * index : 3 * index + 3])
        shares[name] = shares.get(name, 0) + pixels
    return sorted(shares, key=shares.get, reverse=True)[:count]


def orientation(image: Image.Image) -> str:
    """'wide', 'tall' or 'square'."""
    ratio = image.width / image.height
    return "wide" if ratio > 1.15 else "tall" if ratio < 0.87 else "square"


def brightness(image: Image.Image) -> float:
    """Mean lightness, 0 (black) to 1 (white)."""
    from PIL import ImageStat

    return ImageStat.Stat(image.convert("L")).mean[0] / 255


class Describer(Protocol):
    """Turns an image into an intent."""

    def describe(self, image: Image.Image, metadata: Metadata) -> str: ...


class Plain:
    """An intent without any weights: title or keywords, main colors, and what is told by shape and brightness."""

    def describe(self, image: Image.Image, metadata: Metadata) -> str:
        """At most 20 words, as an intent is."""
        words = (metadata.title or " ".join(metadata.keywords[:6])).lower().split()[:12]
        light = ["dark"] * (brightness(image) < 0.25)
        return " ".join([*words, *light, orientation(image), "in", " and ".join(palette(image, 2))])


@dataclass
class Captioner:
    """A transformers model that writes captions (BLIP-class), by Hub id or path."""

    model: str
    tokens: int = 24

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        return load(self.model, AutoProcessor, AutoModelForImageTextToText, "captioner")

    def describe(self, image: Image.Image, metadata: Metadata) -> str:
        """The caption alone: what a file says of itself is not asked."""
        import torch

        processor, model = self.parts
        with torch.inference_mode():
            inputs = processor(images=image, return_tensors="pt").to(model.device, model.dtype)
            ids = model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)
        return " ".join(re.findall(r"\S+", processor.batch_decode(ids, skip_special_tokens=True)[0].lower())[:20])


@dataclass
class Clip:
    """A transformers model with image and text vectors in one space (CLIP- or SigLIP-class), by Hub id or path."""

    model: str
    tags: tuple[str, ...] = ()
    count: int = 4
    _known: dict[tuple[str, ...], Any] = field(default_factory=dict)

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoProcessor

        return load(self.model, AutoProcessor, AutoModel, "image_encoder")

    def __call__(self, texts: Sequence[str]) -> numpy.ndarray:
        """Unit vectors of texts, shape (len(texts), width), float32."""
        return self._vectors(
            "get_text_features", lambda batch: {"text": batch, "padding": True, "truncation": True}, list(texts)
        )

    def images(self, images: Sequence[Image.Image]) -> numpy.ndarray:
        """Unit vectors of images, shape (len(images), width), float32."""
        return self._vectors("get_image_features", lambda batch: {"images": batch}, list(images))

    def _vectors(self, method: str, form: Any, items: list[Any], batch_size: int = 32) -> numpy.ndarray:
        import torch

        processor, model = self.parts
        found = []
        for start in range(0, len(items), batch_size):
            inputs = processor(**form(items[start : start + batch_size]), return_tensors="pt").to(model.device)
            with torch.inference_mode():
                given = getattr(model, method)(**inputs)
            vectors = getattr(given, "pooler_output", given).float()
            found.append((vectors / vectors.norm(dim=1, keepdim=True)).cpu().numpy())
        return np.concatenate(found)

    def describe(self, image: Image.Image, metadata: Metadata) -> str:
        """The tags that are nearest to the image."""
        if self.tags not in self._known:
            self._known[self.tags] = self([f"a picture of {tag}" for tag in self.tags])
        nearest = (self._known[self.tags] @ self.images([image])[0]).argsort()[::-1][: self.count]
        return " ".join(self.tags[k] for k in nearest)


def describer_of(settings: SearchSettings, tags: Sequence[str]) -> Describer:
    """The captioner that the settings name, else the tagger, which knows `tags`, else the one without weights."""
    if settings.captioner:
        return Captioner(settings.captioner)
    return Clip(settings.image_encoder, tuple(tags)) if settings.image_encoder else Plain()


def intent_of(path: str | Path, describer: Describer) -> str:
    """What an image file is turned into. Raises: BadImage."""
    return describer.describe(*open_image(Path(path)))


def load(name: str, processor: Any, model: Any, parameter: str) -> tuple[Any, Any]:
    """Processor and model, in float32, on the machine's device. Raises: SettingsError when there is none."""
    import torch

    with loading(f"parameter {parameter}={name!r} is neither a Hub id nor a folder"):
        parts = processor.from_pretrained(name), model.from_pretrained(name, dtype=torch.float32)
    return parts[0], parts[1].to(device_and_dtype()[0]).eval()
