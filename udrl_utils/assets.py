"""Assets made for prompts by a text-to-image pipeline; they join the catalogue as any image does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.catalog import as_table, read_folder
from udrl_utils.collection import xmp
from udrl_utils.errors import extra, loading
from udrl_utils.machine import device_and_dtype

if TYPE_CHECKING:
    import pandas


def load_pipeline(name: str) -> Any:
    """A diffusers text-to-image pipeline, by Hub id or path. Raises: SettingsError when there is none."""
    with extra("search", "parameter generator"):
        from diffusers import DiffusionPipeline
    with loading(f"parameter generator={name!r} is neither a Hub id nor a folder"):
        pipeline = DiffusionPipeline.from_pretrained(name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device_and_dtype()[0])


def make_assets(
    pipeline: Any, intent: str, prompts: Sequence[str], folder: Path, seed: int, **options: Any
) -> pandas.DataFrame:
    """One picture per prompt, saved with the prompt as its title and the intent as its keyword; the new catalogue rows.

    options go to the pipeline: num_inference_steps, height, ...
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for k, prompt in enumerate(prompts):
        draw = torch.Generator().manual_seed(seed + k)
        image = pipeline(prompt, generator=draw, **options).images[0]
        image.save(folder / f"asset-{k:04d}.jpg", quality=92, xmp=xmp(prompt, [intent]))
    return as_table(read_folder(folder)[0])
