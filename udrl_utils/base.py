"""The models that the package ships: a base that has read the recorded prompts, and a student that is ready to ask.

The base is a small GPT-2 with a tokenizer of its own. It reads `intent <|prompt|> prompt <|end|>` and nothing else:
no task, no command, no length to come. Words that an intent and its prompt share are swapped anew in every pass, so
that it learns to copy. A dictionary may be mixed in: it holds far more words than a small recording does.
`udrl base` makes it, and `udrl ready` the student.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from udrl_utils.commands import END_OF_PREFIX
from udrl_utils.errors import SettingsError
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.machine import environment, seed_everything
from udrl_utils.ontology import noun_heads, plural
from udrl_utils.pairs import kept_pairs
from udrl_utils.rewards import read_annotated
from udrl_utils.rows import WordSwaps
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.settings import AnnotationSettings, DistillationSettings, TrainingSettings
from udrl_utils.splits import HELD_OUT, is_reserved, mentions, normal_form, split_share
from udrl_utils.student import Student
from udrl_utils.teachers.recorded import RECORDED, recorded_name, recorded_sets
from udrl_utils.teachers.replies import Request
from udrl_utils.text import clean_intent, harmless, share
from udrl_utils.trainer import make_trainer, plan_of, token_counts
from udrl_utils.training import seen
from udrl_utils.training_log import TrainingLog, callback

# In place of what a preset says, which is meant for a model that has read before.
FROM_SCRATCH = {"base": "", "epochs": 1, "batch_size": 64, "learning_rate": 2e-3}
ENOUGH = 5_000_000  # tokens that a small GPT-2 reads until it writes English: twenty minutes of two cores
GLOSS_WORDS = range(2, 31)  # words of a definition that is read
PROMPTS_COUNT = 6  # times that recorded texts count beside a dictionary when the vocabulary is made
SHOWN_INTENTS = 50  # per task, that travel with the ready student


@cache
def held_out_words() -> frozenset[str]:
    """Nouns that the base never reads, with their plurals: at least those that any run holds out."""
    nouns = [noun for noun in noun_heads() if is_reserved(noun, HELD_OUT)]
    return frozenset([*nouns, *map(plural, nouns)])


def held_out(intent: str) -> bool:
    """Whether an intent may be a test intent of a run."""
    return split_share(intent) < HELD_OUT or names_held_out(intent)


def names_held_out(text: str) -> bool:
    """Whether a text names a held-out noun, alone, in a compound or with 's."""
    return mentions(text, held_out_words())


def corpus(distillation: DistillationSettings, training: TrainingSettings, folder: Path) -> pd.DataFrame:
    """Recorded pairs that the base may read: pair_id, split (train, validation), task, intent, prompt, length [words].

    They pass the filters of notebook 01. None has an intent that a run may test with, a held-out noun, or a length
    that `unseen_lengths` keeps from its task.
    Raises: SettingsError when nothing is recorded in the folder, or too little to train on and to watch.
    """
    if not (folder / "prompts.parquet").exists():
        raise SettingsError(f"no prompts are recorded in {folder}: see notebooks/presets/record.yaml")
    sets = recorded_sets(folder)
    tests = {normal_form(intent) for _, intent in sets if held_out(intent)}
    requests = {Request(t, i, len(prompts)): prompts for (t, i), prompts in sets.items() if normal_form(i) not in tests}
    watched = HELD_OUT + distillation.validation_fraction
    splits = {r.intent: "validation" if split_share(r.intent) < watched else "train" for r in requests}
    written = list(requests.values())
    pairs, *_ = kept_pairs(list(requests), written, splits, "recorded", distillation, held_out_words())
    pairs = pairs[~pairs.prompt.map(normal_form).isin(tests)].reset_index(drop=True)
    if pairs.split.nunique() < 2:
        raise SettingsError(f"{folder} holds too few prompts: none is left to train on, or none to watch training on")
    return seen(pairs.assign(length=pairs.prompt.str.split().str.len()), training)


def one_pass(
    pairs: pd.DataFrame, number: int, settings: TrainingSettings, tokenizer: Any = None
) -> list[dict[str, str]]:
    """Prompt/completion rows of one pass over the pairs; each pass swaps other words, by its number and the seed.

    A pair stays as it is where its swap would make a test intent or a held-out noun.
    """
    swapped, rows = WordSwaps(pairs, settings, tokenizer), []
    for row in pairs[["pair_id", "intent", "prompt"]].to_dict("records"):
        intent, prompt = swapped({**row, "pair_id": f"{row['pair_id']} {number}"})
        if held_out(intent) or names_held_out(prompt):
            intent, prompt = clean_intent(row["intent"]), row["prompt"]
        rows.append({"prompt": f"{harmless(intent)}{END_OF_PREFIX}", "completion": prompt})
    return rows


def read_glosses(folder: Path) -> list[dict[str, str]]:
    """Prompt/completion rows of WordNet: a word and its definition; none with a held-out noun.

    `folder`: its data files (data.noun, ...; Debian's package wordnet-base puts them into /usr/share/wordnet).
    Raises: SettingsError where there are none.
    """
    files = sorted(folder.glob("data.*"))
    if not files:
        raise SettingsError(f"parameter glosses='{folder}' holds no data.noun and other data files of WordNet")
    rows, rng = [], random.Random(0)
    for line in (line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line[0] != " "):
        synset, gloss = line.lower().split(" | ", 1)
        fields = synset.split()
        names = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        word = re.sub(r"\(.*", "", rng.choice(names)).replace("_", " ")
        definition = gloss.split('; "')[0].strip()
        if len(definition.split()) in GLOSS_WORDS and not (held_out(word) or names_held_out(definition)):
            rows.append({"prompt": f"{harmless(word)}{END_OF_PREFIX}", "completion": harmless(definition)})
    return rows


def train_base(
    distillation: DistillationSettings,
    training: TrainingSettings,
    passes: int | None,
    out: Path,
    command: str,
    folder: Path = RECORDED,
    glosses: Path | None = None,
) -> None:
    """Train a base from scratch, in the shape of the settings, on what is recorded in the folder.

    With `glosses`, the folder of WordNet, its definitions are mixed in once. The base is saved to `out` in float16,
    with its tokenizer and a card that names the `command` which makes it.
    Raises: SettingsError as `corpus` and `read_glosses` do.
    """
    import torch
    from datasets import Dataset, concatenate_datasets

    began, settings = time.monotonic(), training.model_copy(update=FROM_SCRATCH)
    seed_everything(settings.seed)
    pairs = corpus(distillation, settings, folder)
    train, held = pairs[pairs.split == "train"], pairs[pairs.split == "validation"]
    dictionary = read_glosses(glosses) if glosses else []
    texts = [*train.intent, *train.prompt] * PROMPTS_COUNT + [text for row in dictionary for text in row.values()]
    tokenizer = train_tokenizer(texts, settings.vocab_size, [END_OF_PREFIX])
    passes = passes or enough_passes(train.prompt, tokenizer)
    rows = [Dataset.from_list(one_pass(train, number, settings, tokenizer)) for number in range(passes)]
    watched = Dataset.from_list(one_pass(held, 0, settings.model_copy(update={"word_swaps": 0})))
    print(f"{len(train)} prompts, {passes} times; {len(dictionary)} definitions", flush=True)
    if dictionary:
        rows.append(Dataset.from_list(dictionary))
    with TemporaryDirectory() as work:
        model = new_student(settings, tokenizer)
        trainer = make_trainer(model, tokenizer, settings, Path(work), concatenate_datasets(rows), watched)
        trainer.add_callback(callback(TrainingLog("base", held.head(0)), None))
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    tokens = sum(token_counts(trainer.train_dataset)[0])
    trainer.model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    mixed_in = f"{len(dictionary)} definitions of WordNet (Princeton University), once" if dictionary else "nothing"
    facts = {
        "Read": f"{len(train)} prompts that {recorded_name(folder)} wrote for {train.intent.nunique()} intents",
        "Passes": f"{passes}, words swapped anew in each",
        "Mixed in": mixed_in,
        "Tokens": f"{tokens} in all",
        "Shape": f"GPT-2, {settings.n_layer} layers x {settings.n_embd}, {settings.n_head} heads, {len(tokenizer)} "
        f"tokens, {trainer.model.num_parameters() / 1e6:.1f}M parameters, stored in float16",
        "Loss": f"{loss:.3f} nats a token of the prompts of {held.intent.nunique()} intents that it never read",
        "Seed": settings.seed,
        "Time": f"{(time.monotonic() - began) / 60:.1f} minutes on {environment()['machine']}",
        "Made by": f"`{command}`",
    }
    (out / "README.md").write_text(BASE_CARD + fact_list(facts), encoding="utf-8")


def enough_passes(prompts: Iterable[str], tokenizer: Any) -> int:
    """Passes after which a base has read ENOUGH tokens of prompts: from 4 over a large recording to 48 over a small,
    which more of them would only teach by heart."""
    tokens = sum(map(len, tokenizer(list(prompts), add_special_tokens=False).input_ids))
    return min(max(round(ENOUGH / tokens), 4), 48)


BASE_CARD = f"""---
library_name: transformers
pipeline_tag: text-generation
---
# A base that has read the recorded prompts

A small GPT-2 that knows how prompts for search and recommendation read, and no command. A run with `base: recorded`
starts from it and teaches it commands. It reads `intent <|prompt|> prompt <|end|>`: no task, no command, no length.

Never in it, nor in its tokenizer's text: intents that a run may test with (up to `test_fraction` {HELD_OUT}), and nouns
that a run may hold out. No prompt has a length that `unseen_lengths` keeps back from its task.

"""


def ship_student(run: RunFolder, out: Path, command: str) -> None:
    """Save a run's student to `out` in float16, with its codec, test intents to ask it for, and a card.

    ready.json holds the encoder of its rewards, and up to 50 test intents of each task.
    """
    import torch

    student, scoring = Student.load(run / "03_student"), run.settings(AnnotationSettings)
    training, seconds = run.settings(TrainingSettings), run.read()["stages"]["03_student"]["seconds"]
    annotated = read_annotated(run)
    student.model.to(torch.float16)
    out.mkdir(parents=True, exist_ok=True)
    student.save(out)
    test = annotated[annotated.split == "test"].groupby("task").intent.unique()
    intents = {task: sorted(found, key=lambda intent: share(intent, 0))[:SHOWN_INTENTS] for task, found in test.items()}
    write_json(out / "ready.json", {"encoder": scoring.encoder, "intents": intents})
    train = annotated[annotated.split == "train"]
    facts = {
        "Trained on": f"{len(train)} pairs of {train.intent.nunique()} intents, written by "
        f"{', '.join(sorted(train.teacher.unique()))}",
        "Started from": f"`base: {training.base}`" if training.base else "scratch",
        "Passes": f"{plan_of(training, train, student.tokenizer).epochs:g}",
        "Rounds": f"{training.rounds}, of at most {training.round_sets} sets",
        "Seed": training.seed,
        "Time": f"{seconds / 60:.1f} minutes on {environment()['machine']}",
        "Made by": f"`{command}`",
    }
    card = out / "README.md"
    card.write_text(f"{card.read_text(encoding='utf-8')}\n## How it was made\n\n{fact_list(facts)}", encoding="utf-8")


def fact_list(facts: dict[str, Any]) -> str:
    """Facts as a Markdown list."""
    return "".join(f"- {name}: {value}\n" for name, value in facts.items())
