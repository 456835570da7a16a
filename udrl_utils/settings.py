"""What each stage can be told: settings models, parameters that become settings, and errors told in one line.

In go a preset, `--set` changes and a notebook's parameters; out comes a checked, frozen model for one stage.
Nothing here knows what a stage does.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator


class UserError(ValueError):
    """A mistake that the user can mend; shown as one line, in notebooks too."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class SettingsError(UserError):
    """A parameter is unknown, mistyped or outside its range."""


class RunError(UserError):
    """The run folder cannot be used: a stage is missing, or was made with other settings."""


@contextmanager
def extra(name: str, wanted_by: str) -> Iterator[None]:
    """Import what an extra of the package brings. Raises: SettingsError when it is not installed."""
    try:
        yield
    except ImportError:
        raise SettingsError(f"{wanted_by} needs the {name} extra: pip install 'udrl_utils[{name}]'") from None


@contextmanager
def loading(otherwise: str) -> Iterator[None]:
    """Load a model that the user named. Raises: SettingsError, which says `otherwise` and why it cannot be loaded."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SettingsError(f"{otherwise}: {str(error).strip().splitlines()[0]}") from None


# Nothing here asks a model hub unless the user names a hub id, and no library sends usage pings by default.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {
    "01_pairs": "01_teacher_distillation",
    "02_annotated": "02_reward_annotation",
    "03_student": "03_udrl_training",
    "04_analysis": "04_analysis",
    "05_probes": "05_probe_commands",
    "06_search": "06_search_and_recommendation",
    "07_deployment": "07_deployment",
}
STAGES = tuple(NOTEBOOKS)
MOST_WORDS = 200  # of a prompt that is kept; each length is a token of its own
TaskName = Literal["text_to_image", "text_to_template", "related_search", "query_rewrite"]


def builds_on(stage: str) -> tuple[str, ...]:
    """Stages that must be finished before this one: those before it, up to the student."""
    return STAGES[: min(STAGES.index(stage), 3)]


class StageSettings(BaseModel):
    """What every stage knows. Fields carry no defaults: those live in `notebooks/presets/*.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: str = Field(description="name of the run; its folder is outputs/<run>", pattern=r"^[A-Za-z0-9][\w.-]*$")
    seed: int = Field(description="seed of every random choice", ge=0, lt=2**31)
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    # Settings that say how a stage is made and not what: they may change between two parts of its making.
    HOW: ClassVar[frozenset[str]] = frozenset({"run"})

    def show(self) -> None:
        """Print each setting with what it means."""
        for name, field in type(self).model_fields.items():
            print(f"{name:24} {getattr(self, name)!r:32} {field.description}")


def without_secrets(urls: list[str]) -> list[str]:
    """Addresses that may be shown and stored. Raises: ValueError for others."""
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.password:
            raise ValueError("should hold http(s) addresses without a password; keys come from OPENAI_API_KEY")
    return urls


class DistillationSettings(StageSettings):
    """01: intents, the teacher that writes prompts for them, and what is kept of its replies."""

    HOW = frozenset(
        ("run", "teacher_base_urls", "teacher_concurrency", "teacher_timeout", "teacher_budget", "teacher_prices")
    )

    tasks: list[TaskName] = Field(description="kinds of prompt to distil", min_length=1)
    intents: str = Field(description="'ontology', a txt/csv/tsv/jsonl/parquet file, or a Hub data set", min_length=1)
    intents_column: str = Field(description="column of the intents, in files that have columns", min_length=1)
    n_intents: int = Field(description="intents to use; 0 means all of a file, or all that were recorded", ge=0)
    prompts_per_intent: int = Field(description="prompts asked for per task and intent", ge=2, le=64)
    pairs: str = Field(
        description="file or Hub data set of (task, intent, prompt) that replaces the teacher; '' for none"
    )
    teacher: Literal["recorded", "local", "openai"] = Field(
        description="who writes the prompts: recorded ones, a model on this machine, or a server"
    )
    teacher_model: str = Field(description="Hub id, folder or .gguf file of a local teacher; a server's model name")
    teacher_form: Literal["single", "list"] = Field(
        description="one prompt per completion, which suits small models, or a JSON list of all"
    )
    teacher_base_urls: list[str] = Field(description="addresses of OpenAI-compatible servers, asked in turn")
    teacher_temperature: float = Field(description="sampling temperature of an LLM teacher", ge=0, le=2)
    teacher_intents_per_request: int = Field(description="intents that a request to a server holds", ge=1, le=100)
    teacher_concurrency: int = Field(description="requests under way at once", ge=1, le=4096)
    teacher_timeout: float = Field(description="a request that takes longer is made again [s]", gt=0)
    teacher_budget: int = Field(description="requests that may be made in all, failed ones included; 0 for any", ge=0)
    teacher_prices: list[float] = Field(description="prices of a million tokens [in, out], to count the cost; or []")
    min_words: int = Field(description="shorter prompts are dropped [words]", ge=1)
    max_words: int = Field(description="longer prompts are dropped [words]", ge=4, le=MOST_WORDS)
    near_duplicate: float = Field(
        description="Jaccard similarity of word 3-grams from which a prompt repeats another", gt=0, le=1
    )
    validation_fraction: float = Field(description="share of intents held out to watch training", gt=0, lt=0.5)
    test_fraction: float = Field(description="share of intents held out for the analysis", gt=0, lt=0.5)
    shard_size: int = Field(
        description="requests per shard, which is never made again; best many times teacher_concurrency", ge=1
    )

    _urls = field_validator("teacher_base_urls")(without_secrets)

    @field_validator("teacher_prices")
    @classmethod
    def _two_prices(cls, value: list[float]) -> list[float]:
        if len(value) not in (0, 2) or min(value, default=0) < 0:
            raise ValueError("should be two numbers from 0, or none")
        return value

    @field_validator("max_words")
    @classmethod
    def _not_below_min_words(cls, value: int, others: ValidationInfo) -> int:
        if value < others.data.get("min_words", 0):
            raise ValueError(f"should not be less than min_words={others.data['min_words']}")
        return value


class AnnotationSettings(StageSettings):
    """02: the rewards that every pair is scored with."""

    HOW = frozenset(("run", "data_repo", "judge_base_urls", "judge_concurrency", "judge_timeout", "judge_budget"))

    rewards: list[str] = Field(description="rewards to score, from the registry", min_length=1)
    encoder: str = Field(description="'minilm' (bundled) or a Sentence-Transformers id or path", min_length=1)
    data_repo: str = Field(description="hub repository that the annotated pairs are uploaded to; '' for none")
    judge_model: str = Field(description="model that gives the reward 'judge'; '' for none")
    judge_base_urls: list[str] = Field(description="addresses of OpenAI-compatible servers of the judge, asked in turn")
    judge_votes: int = Field(description="votes behind each score of the judge", ge=1, le=32)
    judge_concurrency: int = Field(description="requests of the judge under way at once", ge=1, le=4096)
    judge_timeout: float = Field(description="a request of the judge that takes longer is made again [s]", gt=0)
    judge_budget: int = Field(
        description="requests to the judge in all, of later notebooks and failed ones too; 0 for any", ge=0
    )

    _urls = field_validator("judge_base_urls")(without_secrets)

    @field_validator("judge_model")
    @classmethod
    def _named_where_needed(cls, value: str, others: ValidationInfo) -> str:
        if not value and "judge" in others.data.get("rewards", ()):
            raise ValueError("should name a model, since rewards hold 'judge'")
        return value


class TrainingSettings(StageSettings):
    """03: the codec and the student."""

    HOW = frozenset(("run", "model_repo", "report_to"))

    bins: int = Field(description="quantile levels per reward", ge=2, le=100)
    command_form: Literal["tokens", "text", "none"] = Field(
        description="how commands are written: tokens, text or none"
    )
    command_place: Literal["first", "last"] = Field(description="commands before the intent, or after it")
    command_dropout: float = Field(
        description="chance that a pair is trained with some of its commands left open", ge=0, lt=1
    )
    base: str = Field(description="causal LM to start from: recorded (shipped), a Hub id or a path; '' for none")
    vocab_size: int = Field(description="byte-level BPE tokens, from scratch only", ge=300, le=65536)
    n_layer: int = Field(description="transformer layers, from scratch only", ge=2, le=48)
    n_head: int = Field(description="attention heads, from scratch only", ge=2, le=32)
    n_embd: int = Field(description="width, from scratch only", ge=32, le=4096)
    n_positions: int = Field(description="context [tokens]; more where the longest pair needs it", ge=64, le=4096)
    copy_init: bool = Field(description="start from scratch with a copying circuit in the first two layers")
    epochs: float = Field(
        description="passes over the train split; 0 for what suits the amount of pairs", ge=0, le=1000
    )
    batch_size: int = Field(description="pairs per optimiser step", ge=1)
    learning_rate: float = Field(
        description="peak learning rate (AdamW); 0 for what suits the amount of pairs", ge=0, lt=1
    )
    horizon: int = Field(
        description="words from one note of the length still to come to the next; 0 for no notes", ge=0
    )
    word_swaps: float = Field(
        description="chance that words of a pair's intent are swapped, in its prompt too", ge=0, le=1
    )
    rounds: int = Field(description="rounds of asking, scoring and learning from what was achieved", ge=0, le=20)
    round_sets: int = Field(description="sets of 4 prompts that a round asks the student for", ge=10)
    unseen_lengths: list[int] = Field(description="lengths that the last task is never trained on, as a probe")
    kl_anchor: float = Field(description="weight that keeps a round near the student it started from; 0 for none", ge=0)
    model_repo: str = Field(description="hub repository that the student is uploaded to; '' for none")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        description="where losses are also reported, if that package is installed"
    )
    plain_sft: bool = Field(description="also train the baseline without commands, at equal budget")

    @field_validator("n_embd")
    @classmethod
    def _whole_even_heads(cls, value: int, others: ValidationInfo) -> int:
        heads = others.data.get("n_head", 1)
        if value % (2 * heads):
            raise ValueError(f"should be a multiple of {2 * heads}, twice n_head={heads}")
        return value


class SamplingSettings(StageSettings):
    """How a student writes, in every stage that lets it."""

    temperature: float = Field(description="sampling temperature of the student", gt=0, le=2)
    min_p: float = Field(description="tokens less likely than this share of the likeliest are not drawn", ge=0, le=1)
    guidance: float = Field(description="how far levels are followed, 1 being what was learnt", ge=0, le=10)

    def sampling(self) -> dict[str, Any]:
        """What the student is told of how to sample."""
        return self.model_dump(include={"seed", "temperature", "min_p", "guidance"})


class IntervalSettings(StageSettings):
    """How sure we are of a mean, in every stage that gives one."""

    bootstrap_samples: int = Field(description="resamples behind each 95% interval", ge=100)


class MeasuringSettings(IntervalSettings):
    """What is measured on test intents."""

    analysis_intents: int = Field(description="test intents per task", ge=2)
    samples_per_intent: int = Field(description="prompts per set when diversity is calibrated", ge=2)


class AnalysisSettings(SamplingSettings, MeasuringSettings):
    """04: what is generated on test intents, and what it is compared with."""

    baselines: list[str] = Field(description="to compare with: local:<model>, openai:<model>@<address>")
    fluency_model: str = Field(
        description="causal LM that says how fluent prompts are: a GGUF file, a folder or a Hub id; '' for none"
    )
    outside_intents: str = Field(description="file or Hub data set of intents from outside, as a probe; '' for none")
    outside_column: str = Field(description="column of the outside intents", min_length=1)
    ablations: list[str] = Field(
        description="variants to train and compare: all, or such as 'no guidance'; [] for none"
    )
    ablation_rows: int = Field(description="training rows that each variant gets", ge=100)
    ablation_seeds: int = Field(description="seeds that each variant is trained with", ge=1)


class StudentSettings(StageSettings):
    """Which student is asked, in every stage that needs no more of a run than its student."""

    student: Literal["", "ready"] = Field(
        description="'' for the student of the run; ready for the one that is shipped, which needs no run"
    )


class ProbeSettings(SamplingSettings, StudentSettings):
    """05: what the panel opens with, and the grid of commands that is shown without it."""

    probe_intents: list[str] = Field(description="intents of the grid of commands; [] for a test intent of each task")
    probe_prompts: int = Field(description="prompts per probe", ge=1, le=32)


class SearchSettings(IntervalSettings):
    """06: the catalogue, how it is searched, and what the search is measured on."""

    catalog: str = Field(
        description="'drawn', a folder of images, a csv/tsv/jsonl/parquet file, or a Hub data set", min_length=1
    )
    n_items: int = Field(description="items to draw, or to keep of another catalogue, where 0 means all", ge=0)
    judgements: str = Field(description="file of (intent, id, grade) for a catalogue of your own; '' for none")
    image_encoder: str = Field(description="CLIP- or SigLIP-class model that embeds the images too; '' for none")
    captioner: str = Field(description="BLIP-class model that turns images into intents; '' for none")
    generator: str = Field(description="diffusers text-to-image pipeline that adds assets; '' for none")
    search_prompts: int = Field(description="prompts written for an intent", ge=1, le=64)
    search_tasks: list[TaskName] = Field(description="kinds of prompt that are searched with, in turn", min_length=1)
    search_command: list[str] = Field(
        description="what those prompts are commanded, such as 'length 5'; [] for nothing"
    )
    search_guidance: float = Field(description="how far the levels of that command are followed", ge=0, le=10)
    raw_weight: float = Field(
        description="weight of the intent beside its prompts, which share 1, times 1 - the diversity asked for", ge=0
    )
    search_intents: int = Field(description="intents of each form that are judged: short, long and vague", ge=2)

    @field_validator("n_items")
    @classmethod
    def _some_to_draw(cls, value: int, others: ValidationInfo) -> int:
        if value < 20 and others.data.get("catalog") == "drawn":
            raise ValueError("should be at least 20 with catalog='drawn'")
        return value

    @field_validator("search_command")
    @classmethod
    def _rewards_with_numbers(cls, value: list[str]) -> list[str]:
        for part in value:
            if not re.fullmatch(r"length [1-9]\d*|(?!length )[a-z_]\w* (0(\.\d+)?|1(\.0+)?)", part):
                raise ValueError("should hold rewards with a number of words or a level, such as 'diversity 0.5'")
        return value

    def asked(self) -> dict[str, float]:
        """The command as rewards and numbers."""
        pairs = (part.split() for part in self.search_command)
        return {name: int(number) if name == "length" else float(number) for name, number in pairs}


class DeploymentSettings(MeasuringSettings, StudentSettings):
    """07: what is exported, and what its speed is compared with."""

    precisions: list[Literal["float32", "bfloat16", "int8", "q8_0"]] = Field(
        description="how exported weights are stored: float32, bfloat16, int8; q8_0: llama.cpp", min_length=1
    )
    threads: int = Field(description="processor threads of the deployed student; 0 for all", ge=0)
    top_k: int = Field(description="likeliest tokens that the deployed student draws from; 0 for all", ge=0)
    top_p: float = Field(description="share of their probability that it draws from", gt=0, le=1)
    latency_requests: int = Field(description="requests that are timed one by one", ge=5)
    batch_sizes: list[int] = Field(description="prompts written at once when throughput is timed", min_length=1)
    shapes: list[str] = Field(description="models whose speed is set beside: 124M, 1B, 8B, a Hub id or a path")


SETTINGS: dict[str, type[StageSettings]] = {
    "01_pairs": DistillationSettings,
    "02_annotated": AnnotationSettings,
    "03_student": TrainingSettings,
    "04_analysis": AnalysisSettings,
    "05_probes": ProbeSettings,
    "06_search": SearchSettings,
    "07_deployment": DeploymentSettings,
}


KNOWN = {name for cls in SETTINGS.values() for name in cls.model_fields}
S = TypeVar("S", bound=StageSettings)


def resolve(cls: type[S], namespace: dict[str, Any]) -> S:
    """Settings of one stage out of a notebook's namespace (`globals()`) or a plain dict.

    Parameters of other stages may be there, so that one preset drives all notebooks. Any other plain
    literal is a mistyped parameter. A second call in the same kernel does not look for those again: by
    then the names may be the user's own.

    Raises: SettingsError, one line that names the parameter, its value and what is allowed.
    """
    literals = (str, int, float, bool, list, dict, type(None))
    given = {
        name: value
        for name, value in namespace.items()
        if type(value) in literals and name.islower() and not name.startswith("_")
    }
    if "_settings_resolved" not in namespace:
        for name in sorted(given.keys() - KNOWN):
            close = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(sorted(KNOWN))}"
            raise SettingsError(f"unknown parameter {name}={given[name]!r}{hint}")
    try:
        settings = cls(**{name: value for name, value in given.items() if name in cls.model_fields})
    except ValidationError as error:
        raise SettingsError(explain(error, cls)) from None
    settings._given = {name: value for name, value in given.items() if name in KNOWN}
    namespace["_settings_resolved"] = True
    return settings


def explain(error: ValidationError, cls: type[StageSettings]) -> str:
    """First problem of a validation error, in one line."""
    problem = error.errors()[0]
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"missing parameter {name} ({cls.model_fields[name].description})"
    what = problem["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("Value error, ")
    return f"parameter {name}={problem['input']!r} {what} ({cls.model_fields[name].description})"


def parameters_page(values: dict[str, Any]) -> str:
    """docs/parameters.md: every parameter by notebook, with its value in a preset and what it means."""
    lines = [
        "# Parameters",
        "",
        "The laptop preset's values. `udrl run --set name=value` changes one, `papermill -p name value` too.",
        "This page is made by `make docs`.",
    ]
    told: set[str] = set()
    for stage, cls in SETTINGS.items():
        fields = {name: field for name, field in cls.model_fields.items() if name not in told}
        told |= fields.keys()
        lines += ["", f"## {stage}", "", "| parameter | laptop | meaning |", "|---|---|---|"]
        lines += [f"| `{k}` | `{json.dumps(values[k])}` | {field.description} |" for k, field in fields.items()]
    return "\n".join(lines) + "\n"
