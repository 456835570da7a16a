"""How prompts are worded: relevance and diversity can be had by word salad, these two measures cannot.

In go prompts, the words that a run's teacher used in training, and a causal language model. Out come, per prompt, the
share of its words that do not exist, whether it is broken, and its mean log-likelihood per token. None of them knows
whether a prompt fits its intent, and a model that is the teacher as well finds its own prompts more fluent than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from udrl_utils.language_models import load_causal_lm, located
from udrl_utils.machine import device_and_dtype
from udrl_utils.settings import AnalysisSettings, IntervalSettings
from udrl_utils.text import degenerate, scripts
from udrl_utils.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Reader = tuple[PreTrainedModel, PreTrainedTokenizerBase]

BATCH_SIZE = 16
READ = 24  # prompts per system and task that are read for fluency: the laptop preset's take two cores half a minute
BAND = 4  # words; prompts whose lengths fall into one band count as equally long


@cache
def english() -> frozenset[str]:
    """321,180 words seen in several English sources, names and loan words among them (wordfreq, its large list)."""
    from wordfreq import get_frequency_dict

    return frozenset(get_frequency_dict("en", "large"))


def vocabulary_of(annotated: pd.DataFrame) -> Vocabulary:
    """Words that a run's prompts may use: those of English and of the train split."""
    train = annotated[annotated.split == "train"]
    return Vocabulary([*train.intent.unique(), *train.prompt], english())


def fluency_reader(settings: AnalysisSettings) -> Reader | None:
    """The model that says how fluent prompts are; None, and a line that says why, where there is none.

    Raises: SettingsError when it is there and cannot be loaded.
    """
    name = settings.fluency_model
    if not name:
        print("fluency is not measured: no fluency_model is named", flush=True)
        return None
    if name.endswith(".gguf") and not located(name).exists():
        print(f"fluency is not measured: there is no {name}; `make llm` fetches the presets' file", flush=True)
        return None
    model, tokenizer = load_causal_lm(name)
    return model.to(device_and_dtype()[0]), tokenizer


def fluency(prompts: Sequence[str], reader: Reader) -> list[float]:
    """Mean log-likelihood per token of each prompt as a text of its own [nats, at most 0]; NaN for an empty prompt.

    The higher, the more fluent. A text begins after the token that separates the documents that a model was trained
    on: <|endoftext|> where it has one, since the first token of a chat model opens a turn; else its first or last.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    model, tokenizer = reader
    separator = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.bos_token_id)
    start = tokenizer.eos_token_id if separator is None else separator
    texts = [torch.tensor([start, *tokenizer(prompt, add_special_tokens=False).input_ids]) for prompt in prompts]
    found = [float("nan")] * len(texts)
    order = sorted((k for k, ids in enumerate(texts) if len(ids) > 1), key=lambda k: len(texts[k]))
    for begin in range(0, len(order), BATCH_SIZE):
        rows = order[begin : begin + BATCH_SIZE]
        ids = pad_sequence([texts[k] for k in rows], batch_first=True).to(model.device)
        real = pad_sequence([torch.ones_like(texts[k]) for k in rows], batch_first=True).to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=real).logits[:, :-1].float()
            each = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
        means = (each * real[:, 1:]).sum(-1) / real[:, 1:].sum(-1)
        for k, mean in zip(rows, means.tolist(), strict=True):
            found[k] = mean
    return found


def worded(samples: pd.DataFrame, annotated: pd.DataFrame, reader: Reader | None) -> pd.DataFrame:
    """Samples of systems (system, task, intent, prompt, ...) with non_words, broken and, given a reader, fluency.

    Fluency is that of the first prompts of each system and task, spread over all intents, and NaN for others.
    """
    vocabulary = vocabulary_of(annotated)
    shares = [vocabulary.share(intent, prompt) for intent, prompt in zip(samples.intent, samples.prompt, strict=True)]
    known = scripts(" ".join(annotated.intent.unique()))
    broken = [float(degenerate(p, i, known)) for i, p in zip(samples.intent, samples.prompt, strict=True)]
    samples = samples.assign(non_words=shares, broken=broken)
    if reader is None:
        return samples
    turn = samples.groupby(["system", "task", "intent"]).cumcount()
    first = samples.loc[turn.sort_values(kind="stable").index].groupby(["system", "task"]).head(READ)
    return samples.assign(fluency=pd.Series(fluency(first.prompt.tolist(), reader), first.index))


def fluency_vs_teacher(samples: pd.DataFrame, settings: IntervalSettings) -> dict[str, dict[str, float]]:
    """Fluency less the teacher's at the same lengths [nats per token], intents resampled in pairs.

    Each word of a long prompt has more before it to be guessed from. So the teacher's prompts are weighted: each task
    and band of word counts gets the share that it has among the system's. Returns per system mean, low, high and
    `matched`, the share of its prompts in bands that the teacher has prompts of too.
    """
    rows = samples.dropna(subset=["fluency"])
    band = rows.prompt.str.split().str.len() // BAND
    cell, key = rows.groupby(["task", band]).ngroup().to_numpy(), rows.groupby(["task", "intent"]).ngroup().to_numpy()
    keys, shape = key.max() + 1, (key.max() + 1, cell.max() + 1)
    drawn = np.random.default_rng(settings.seed).integers(0, keys, (settings.bootstrap_samples, keys))
    times = np.array([np.ones(keys), *(np.bincount(draw, minlength=keys) for draw in drawn)])

    def counts_and_sums(system: str) -> tuple[Any, Any]:
        ours, tables = (rows.system == system).to_numpy(), (np.zeros(shape), np.zeros(shape))
        for table, values in zip(tables, (1, rows.fluency[ours]), strict=True):
            np.add.at(table, (key[ours], cell[ours]), values)
        return times @ tables[0], times @ tables[1]

    their_counts, their_sums = counts_and_sums("teacher")
    found = {}
    for system in rows.system[rows.system != "teacher"].unique():
        counts, sums = counts_and_sums(system)
        both = (counts > 0) & (their_counts > 0)
        weights = np.where(both, counts, 0.0)
        apart = np.where(both, sums / np.maximum(counts, 1) - their_sums / np.maximum(their_counts, 1), 0.0)
        if not weights[0].any():
            continue
        with np.errstate(invalid="ignore"):  # a draw in which no band is shared says nothing
            differences = (weights * apart).sum(1) / weights.sum(1)
        low, high = np.nanpercentile(differences[1:], [2.5, 97.5])
        matched = float(weights[0].sum() / counts[0].sum())
        found[system] = {"mean": float(differences[0]), "low": float(low), "high": float(high), "matched": matched}
    return found
