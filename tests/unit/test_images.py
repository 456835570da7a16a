"""Images of strangers: what is refused, what their metadata says, and what they are turned into."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udrl_utils.errors import SettingsError
from udrl_utils.search import images
from udrl_utils.search.images import BadImage, Metadata, main_colors, open_image, xmp


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
    assert b"<rdf:li>a &lt;b&gt; &amp; c</rdf:li>" in xmp("", ["a <b> & c"])


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


@pytest.mark.parametrize(
    ("color", "name"),
    [("#ff0000", "red"), ("#ffffff", "white"), ("#000000", "black"), ("#808080", "gray"), ("#1f7a3a", "green"),
     ("#1e3fd0", "blue"), ("#12205a", "navy"), ("#ffd21f", "yellow"), ("#5a3a1a", "brown"), ("#f59ac0", "pink")],
)  # fmt: skip
def test_colors_go_by_their_names(color: str, name: str) -> None:
    assert main_colors(Image.new("RGB", (20, 20), color), 3) == [name]


def test_an_image_becomes_an_intent_of_at_most_twenty_words() -> None:
    image = Image.new("RGB", (300, 100), "#12205a")
    image.paste("#ffd21f", (0, 0, 300, 12))
    assert images.plain(image, Metadata("Night Sea")) == "night sea dark wide in navy and yellow"
    assert images.plain(image, Metadata("", ("owl", "moon"))).startswith("owl moon dark")
    assert len(images.plain(image, Metadata("word " * 50)).split()) <= 20


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of a few thousand parameters with its processor, on disk."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(k) for k in range(97, 123)]
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizerFast(vocab={word: k for k, word in enumerate(vocab)}, merges=[], model_max_length=77)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokenizer), "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(size=32, crop_size=32), tokenizer).save_pretrained(folder)
    return folder


def test_clip_puts_images_and_texts_into_one_space(tiny_clip: Path) -> None:
    clip = images.Clip(str(tiny_clip))
    pictures = [Image.new("RGB", (50, 40), color) for color in ("red", "blue", "green")]
    vectors, texts = clip(pictures), clip(["fox", "a koi pond " * 50])
    assert vectors.shape == (3, 12) and texts.shape == (2, 12)
    assert np.allclose(np.linalg.norm(np.vstack([vectors, texts]), axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1])
    tags = ("fox", "owl", "koi")
    nearest = (clip([f"a picture of {tag}" for tag in tags]) @ vectors[0]).argsort()[::-1][:2]
    assert clip.tagger(tags, 2)(pictures[0], Metadata()) == " ".join(tags[k] for k in nearest)


def test_a_captioner_writes_an_intent(tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "a", "red", "fox"]
    core = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="[BOS]", eos_token="[SEP]", **special)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "vocab_size": len(words)}
    config = BlipConfig(
        text_config=tower | ids | {"encoder_hidden_size": 16, "projection_dim": 8, "max_position_embeddings": 40},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(tmp_path)
    caption = images.captioner(str(tmp_path))(Image.new("RGB", (60, 40), "red"), Metadata("unread"))
    assert len(caption.split()) <= 20 and "unread" not in caption
    assert set(caption.split()) <= {word.lower() for word in words}


def test_a_missing_model_is_named() -> None:
    for parameter, load in (("captioner", images.captioner), ("image_encoder", images.Clip)):
        with pytest.raises(SettingsError, match=f"{parameter}='/no/such/model' is neither a Hub id nor a folder"):
            load("/no/such/model")


def test_a_file_that_is_no_image_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<svg onload=alert(1)>")
    with pytest.raises(BadImage, match="not an image of a known format"):
        open_image(tmp_path / "page.png")
