"""Images made for prompts by a tiny text-to-image pipeline are items of a catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

from udrl_utils.errors import SettingsError
from udrl_utils.search.catalogue import make_assets
from udrl_utils.search.images import open_image


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent diffusion pipeline of a few thousand parameters that has learned nothing, on disk."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("pipeline")
    letters = [chr(k) for k in range(97, 123)]
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: k for k, word in enumerate(vocab)}, merges=[], model_max_length=77)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
    unet = UNet2DConditionModel(
        **blocks,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def test_assets_are_items_with_their_prompt_as_title(pipeline_folder: Path, tmp_path: Path) -> None:
    prompts = ["a fox, pixel art", "a fox at dawn"]
    small = {"num_inference_steps": 2, "height": 16, "width": 16}
    made = make_assets(str(pipeline_folder), "fox", prompts, tmp_path / "one", seed=0, **small)
    assert made.title.tolist() == prompts and set(made.keywords) == {"fox"} and set(made.kind) == {"image"}
    again = make_assets(str(pipeline_folder), "fox", prompts, tmp_path / "two", seed=0, **small)
    pictures = [[open_image(Path(path))[0].tobytes() for path in table.image] for table in (made, again)]
    assert pictures[0] == pictures[1] and pictures[0][0] != pictures[0][1]


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="parameter generator="):
        make_assets(str(tmp_path / "nothing"), "fox", ["a fox"], tmp_path, seed=0)
