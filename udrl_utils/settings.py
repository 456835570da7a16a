"""What each stage can be told: one model per stage, whose fields hold a parameter's default, limits and meaning.

In go a preset with `--set` changes, or the parameters cell of a notebook; out comes a checked, frozen model, or an
error of one line. Nothing here knows what a stage does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from udrl_utils.errors import SettingsError
from udrl_utils.fields import NAMED, Addresses, Baselines, RequestFields, Secret, TaskName, TasksFile, known_task
from udrl_utils.tasks import TASKS, add_tasks

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
SMOLLM2 = "models/SmolLM2-135M-Instruct.Q4_1.gguf"  # fetched by `udrl llm`; what it is for is left out without it


def builds_on(stage: str) -> tuple[str, ...]:
    """Stages that must be finished before this one: those before it, up to the student."""
    return STAGES[: min(STAGES.index(stage), 3)]


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of a settings model."""
    return Field(default, description=meaning, **limits)


class StageSettings(BaseModel):
    """What every stage knows. Defaults and meanings stand here; notebooks and docs/parameters.md repeat them."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    run: str = setting("laptop", "name of the run; its folder is outputs/<run>", pattern=r"^[A-Za-z0-9][\w.-]*$")
    seed: int = setting(0, "seed of every random choice", ge=0, lt=2**31)
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    # Settings that say how a stage is made and not what: they may change between two parts of its making.
    HOW: ClassVar[frozenset[str]] = frozenset({"run"})

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """Settings from a notebook's `globals()`, where its parameters cell and papermill's have left their values.

        The names that those cells assigned when they last ran are read from their source, which IPython keeps in `In`.
        So a mistyped name is reported whenever this runs, and names of other cells are left alone.

        Raises: SettingsError as `resolve` does.
        """
        names = set(cls.model_fields)
        for source in reversed(namespace.get("In", [])):
            assigned, injected = set(ASSIGNED.findall(source)), source.startswith("# Parameters")  # papermill's cell
            if injected or assigned & cls.model_fields.keys():
                names |= assigned
                if not injected:
                    break
        return resolve(cls, {name: namespace[name] for name in names if name in namespace})

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Parameters that do not go together: a name, and what is allowed."""
        return iter(())

    def check_tasks(self) -> None:
        """Check the tasks that are named, once those of the run are known. Raises: SettingsError."""
        for name in getattr(self, "unseen_lengths", ()):
            try:
                known_task(name)
            except ValueError as error:
                raise wrong(type(self), "unseen_lengths", name, str(error)) from None

    def needs(self, stage: str) -> tuple[str, ...]:
        """Stages of the run that must be finished before this one."""
        return builds_on(stage)

    def show(self) -> None:
        """Print each setting with what it means."""
        for name, field in type(self).model_fields.items():
            print(f"{name:24} {getattr(self, name)!r:32} {field.description}")


class WorkersSettings(StageSettings):
    """Where the shards of a stage are made."""

    HOW = frozenset(("run", "workers", "ray_address"))

    workers: Literal["local", "ray"] = setting("local", "who makes the shards: this process (local) or a cluster (ray)")
    ray_address: str = setting(
        "", "host:port of a Ray cluster, or auto: that of this machine; '' starts one", pattern=r"^(auto|[^/]+:\d+)?$"
    )


class DistillationSettings(WorkersSettings):
    """01: intents, the teacher that writes prompts for them, and what is kept of its replies."""

    HOW = frozenset(f"teacher_{name}" for name in ("base_urls", "batch", "concurrency", "timeout", "budget", "prices"))
    HOW |= WorkersSettings.HOW

    tasks_file: TasksFile = setting("", "YAML file with tasks of your own; '' for none")
    tasks: list[TaskName] = setting(list(TASKS), "kinds of prompt to distil", min_length=1)
    intents: str = setting("ontology", f"'ontology', a file ({NAMED}) or a Hub data set", min_length=1)
    intents_column: str = setting("intent", "column of the intents, in files that have columns", min_length=1)
    n_intents: int = setting(1600, "intents to use; 0 for all of a file, or all that were recorded", ge=0)
    prompts_per_intent: int = setting(8, "prompts to ask for per task and intent", ge=2, le=64)
    pairs: str = setting("", "file or Hub data set of (task, intent, prompt) in place of a teacher; '' for none")
    teacher: Literal["recorded", "local", "openai"] = setting(
        "recorded", "who writes the prompts: recorded, local (a model here) or openai (a server)"
    )
    teacher_model: str = setting("", "Hub id, folder or .gguf file of a local teacher; a server's model name")
    teacher_form: Literal["single", "list"] = setting("single", "one prompt per reply (single) or all as JSON (list)")
    teacher_base_urls: Addresses = setting([], "addresses of OpenAI-compatible servers, used in turn")
    teacher_temperature: float = setting(0.9, "sampling temperature of an LLM teacher", ge=0, le=2)
    teacher_request: RequestFields = setting({}, "more fields of a request, such as {reasoning_effort: low}; or {}")
    teacher_batch: bool = setting(False, "ask by batch files: half the price, and up to a day for each shard")
    teacher_intents_per_request: int = setting(1, "intents in one request to a server", ge=1, le=100)
    teacher_concurrency: int = setting(16, "requests under way at once", ge=1, le=4096)
    teacher_timeout: float = setting(120.0, "a request that takes longer is made again [s]", gt=0)
    teacher_budget: int = setting(0, "most requests to make, failed ones included; 0 for no limit", ge=0)
    teacher_prices: list[float] = setting([], "prices of a million tokens [in, out], to count the cost; or []")
    min_words: int = setting(2, "shorter prompts are dropped [words]", ge=1)
    max_words: int = setting(60, "longer prompts are dropped [words]", ge=4, le=MOST_WORDS)
    near_duplicate: float = setting(0.9, "Jaccard similarity of word 3-grams that makes a duplicate", gt=0, le=1)
    validation_fraction: float = setting(0.06, "share of intents held out to watch training", gt=0, lt=0.5)
    test_fraction: float = setting(0.09, "share of intents held out for the analysis", gt=0, lt=0.5)
    shard_size: int = setting(500, "requests per shard, best many times teacher_concurrency", ge=1)

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if len(self.teacher_prices) not in (0, 2) or min(self.teacher_prices, default=0) < 0:
            yield "teacher_prices", "should be two numbers from 0, or none"
        if self.teacher == "local" and self.teacher_request.keys() - {"chat_template_kwargs"}:
            yield "teacher_request", "should hold chat_template_kwargs alone with teacher='local'"
        if self.max_words < self.min_words:
            yield "max_words", f"should not be less than min_words={self.min_words}"
        own = add_tasks(self.tasks_file) if self.tasks_file else self.tasks
        if not set(own) & set(self.tasks):
            yield "tasks", f"should name a task of tasks_file={self.tasks_file!r}, which holds {', '.join(own)}"


class AnnotationSettings(WorkersSettings):
    """02: the rewards that every pair is scored with."""

    HOW = frozenset(f"judge_{name}" for name in ("base_urls", "batch", "concurrency", "timeout", "budget"))
    HOW |= WorkersSettings.HOW | {"data_repo"}

    rewards: list[str] = setting(["length", "relevance", "diversity"], "rewards to score", min_length=1)
    encoder: str = setting("minilm", "'minilm' (bundled) or a Sentence-Transformers id or path", min_length=1)
    data_repo: str = setting("", "Hub repository to upload the annotated pairs to; '' for none")
    judge_model: str = setting("", "model that gives the reward 'judge'; '' for none")
    judge_base_urls: Addresses = setting([], "addresses of the judge's OpenAI-compatible servers, used in turn")
    judge_request: RequestFields = setting({}, "more fields of a request to the judge; {} for none")
    judge_batch: bool = setting(False, "ask the judge by batch files: half the price, and up to a day")
    judge_votes: int = setting(1, "votes behind each score of the judge", ge=1, le=32)
    judge_concurrency: int = setting(16, "requests to the judge under way at once", ge=1, le=4096)
    judge_timeout: float = setting(120.0, "a request to the judge that takes longer is made again [s]", gt=0)
    judge_budget: int = setting(0, "most requests to the judge, from later notebooks too; 0 for no limit", ge=0)

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if "judge" in self.rewards and not self.judge_model:
            yield "judge_model", "should name a model, since rewards hold 'judge'"


SAMPLING = frozenset(("temperature", "min_p", "guidance", "candidates"))  # saved with a student


class SamplingSettings(StageSettings):
    """How the student samples: saved with it by notebook 03, and changed for a single stage by 04 and 05."""

    temperature: float = setting(0.8, "sampling temperature of the student", gt=0, le=2)
    min_p: float = setting(0.05, "tokens less likely than this share of the likeliest are not drawn", ge=0, le=1)
    guidance: float = setting(1.0, "how strongly levels are followed; 1 as it was learnt", ge=0, le=10)
    candidates: int = setting(8, "prompts drawn for each one, of which the nearest to the command is kept", ge=1, le=64)

    def sampling(self) -> dict[str, Any]:
        """Arguments of `student.generate`."""
        return self.model_dump(include={"seed", *SAMPLING})


class TrainingSettings(SamplingSettings):
    """03: the codec and the student."""

    HOW = SAMPLING | {"run", "model_repo", "report_to"}

    bins: int = setting(10, "quantile levels per reward", ge=2, le=100)
    command_form: Literal["tokens", "text", "none"] = setting("tokens", "how commands are written: tokens, text, none")
    command_place: Literal["first", "last"] = setting("first", "commands before the intent, or after it: first or last")
    command_dropout: float = setting(0.5, "chance that a pair leaves some of its commands open", ge=0, lt=1)
    base: str = setting("recorded", "causal LM to start from: recorded (shipped), a Hub id or a path; '' for none")
    vocab_size: int = setting(4096, "byte-level BPE tokens, from scratch only", ge=300, le=65536)
    n_layer: int = setting(4, "transformer layers, from scratch only", ge=2, le=48)
    n_head: int = setting(8, "attention heads, from scratch only", ge=2, le=32)
    n_embd: int = setting(256, "width, from scratch only", ge=32, le=4096)
    n_positions: int = setting(256, "context [tokens]; more where the longest pair needs it", ge=64, le=4096)
    copy_init: bool = setting(True, "start from scratch with a copying circuit in the first two layers")
    epochs: float = setting(0, "passes over the train split; 0 for what suits the pairs", ge=0, le=1000)
    batch_size: int = setting(8, "pairs per optimiser step", ge=1)
    learning_rate: float = setting(0.001, "peak learning rate", gt=0, lt=1)
    horizon: int = setting(1, "words between two notes of the length still to come; 0 for no notes", ge=0)
    word_swaps: float = setting(0.9, "chance that words of a pair's intent are swapped, in its prompt too", ge=0, le=1)
    rounds: int = setting(0, "rounds of asking, scoring and learning from what was achieved", ge=0, le=20)
    round_sets: int = setting(1000, "sets of 4 prompts that a round asks for; at most half as many as pairs", ge=10)
    learnt_guidance: float = setting(1.0, "guidance that the student learns to do without; 1 for none", ge=1, le=10)
    unseen_lengths: dict[str, list[int]] = setting(
        {"text_to_template": [17, 29]}, "lengths that a task is not trained on, as a probe; {} for none"
    )
    model_repo: str = setting("", "Hub repository to upload the student to; '' for none")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "none", "where losses are also reported: none, tensorboard, wandb, trackio"
    )
    plain_sft: bool = setting(True, "also train the baseline without commands, at equal budget")

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if self.n_embd % (2 * self.n_head):
            yield "n_embd", f"should be a multiple of {2 * self.n_head}, twice n_head={self.n_head}"


class IntervalSettings(StageSettings):
    """How sure we are of a mean, in every stage that gives one."""

    bootstrap_samples: int = setting(1000, "resamples behind each 95% interval", ge=100)


class MeasuringSettings(IntervalSettings):
    """What is measured on test intents."""

    analysis_intents: int = setting(24, "test intents per task", ge=2)
    samples_per_intent: int = setting(6, "prompts per set when diversity is calibrated", ge=2)


class AnalysisSettings(SamplingSettings, MeasuringSettings):
    """04: what is generated on test intents, and what it is compared with."""

    baselines: Baselines = setting([f"local:{SMOLLM2}"], "to compare with: local:<model>, openai:<model>@<address>")
    fluency_model: str = setting(SMOLLM2, "rates fluency: a GGUF file, folder or Hub id; '' for none")
    outside_intents: str = setting("", "file or Hub data set of intents from outside, as a probe; '' for none")
    outside_column: str = setting("intent", "column of the outside intents", min_length=1)
    ablations: list[str] = setting([], "variants to train and compare: all, or such as 'no word swaps'; [] for none")
    ablation_rows: int = setting(6000, "rows that each variant is trained on before any round", ge=100)
    ablation_seeds: int = setting(3, "seeds that each variant is trained with", ge=1)


class StudentSettings(StageSettings):
    """Which student is asked, in every stage that needs no more of a run than its student."""

    student: Literal["", "ready"] = setting("", "'' for the run's own, ready for the shipped one, which needs no run")

    def needs(self, stage: str) -> tuple[str, ...]:
        """Nothing when the shipped student is asked."""
        return () if self.student else builds_on(stage)


class ProbeSettings(SamplingSettings, StudentSettings):
    """05: what the panel opens with, and the grid of commands that is shown without it."""

    engine: Literal["pytorch", "float32", "bfloat16", "int8"] = setting(
        "pytorch", "pytorch: the student itself; else a precision that notebook 07 exported"
    )
    probe_intents: list[str] = setting([], "intents of the grid of commands; [] for a test intent of each task")
    probe_prompts: int = setting(4, "prompts per probe", ge=1, le=32)


class SearchSettings(IntervalSettings):
    """06: the catalogue, how it is searched, and what the search is measured on."""

    catalog: str = setting(
        "icons", "'icons', an image folder, a csv/tsv/jsonl/parquet file, or a Hub data set", min_length=1
    )
    n_items: int = setting(0, "items to keep of the catalogue, where 0 means all", ge=0)
    judgements: str = setting("", "file of (intent, id, grade) for a catalogue of your own; '' for none")
    image_encoder: str = setting("", "CLIP- or SigLIP-class model that embeds the images too; '' for none")
    captioner: str = setting("", "BLIP-class model that turns images into intents; '' for none")
    generator: str = setting("", "diffusers text-to-image pipeline that adds assets; '' for none")
    search_prompts: int = setting(4, "prompts to write for an intent, of each kind that is searched with", ge=1, le=64)
    search_command: list[str] = setting(["relevance 0.9", "diversity 0.5"], "the command for them; [] for none")
    rewrite_weight: float = setting(0.1, "weight of an intent's rewrites in BM25, where the intent weighs 1", ge=0)
    description_weight: float = setting(0.3, "weight of its descriptions among vectors, the same way", ge=0)
    prompt_floor: float = setting(0.5, "cosine to the intent below which a prompt weighs nothing", ge=-1, le=1)
    strong_items: int = setting(50, "an intent whose words this many items hold is not expanded", ge=1)
    search_intents: int = setting(100, "judged searches to measure, where 0 means all", ge=0)

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if 0 < self.n_items < 20 and self.catalog == "icons":
            yield "n_items", "should be at least 20 with catalog='icons', or 0 for all"
        part = r"length [1-9]\d*|(?!length )[a-z_]\w* (0(\.\d+)?|1(\.0+)?)"
        if not all(re.fullmatch(part, given) for given in self.search_command):
            yield "search_command", "should hold rewards with a number of words or a level, such as 'diversity 0.5'"

    def asked(self) -> dict[str, float]:
        """The command as rewards and numbers."""
        pairs = (part.split() for part in self.search_command)
        return {name: int(number) if name == "length" else float(number) for name, number in pairs}


class DeploymentSettings(MeasuringSettings, StudentSettings):
    """07: what is exported, and what its speed is compared with."""

    precisions: list[Literal["float32", "bfloat16", "int8"]] = setting(
        ["float32", "int8"], "how exported weights are stored: float32, bfloat16, int8", min_length=1
    )
    threads: int = setting(0, "processor threads of the deployed student; 0 for all", ge=0)
    top_k: int = setting(50, "likeliest tokens that the deployed student draws from; 0 for all", ge=0)
    top_p: float = setting(0.9, "share of their probability that it draws from", gt=0, le=1)
    latency_requests: int = setting(60, "requests that are timed one by one", ge=5)
    batch_sizes: list[int] = setting([1, 8, 32, 64], "prompts written at once when throughput is timed", min_length=1)
    shapes: list[str] = setting(["124M", "1B", "8B"], "models to compare speed with: 124M, 1B, 8B, a Hub id or a path")


SETTINGS: dict[str, type[StageSettings]] = {
    "01_pairs": DistillationSettings,
    "02_annotated": AnnotationSettings,
    "03_student": TrainingSettings,
    "04_analysis": AnalysisSettings,
    "05_probes": ProbeSettings,
    "06_search": SearchSettings,
    "07_deployment": DeploymentSettings,
}

DEFAULTS = {name: field.default for cls in SETTINGS.values() for name, field in cls.model_fields.items()}
ASSIGNED = re.compile(r"^([A-Za-z]\w*) *(?::[^=\n]*)?=(?!=)", re.MULTILINE)  # a name at the start of a line
S = TypeVar("S", bound=StageSettings)


def wrong(cls: type[StageSettings], name: str, value: Any, allowed: str) -> SettingsError:
    """The error for a parameter's value: one line with what is allowed and what the parameter is for."""
    return SettingsError(f"parameter {name}={value!r} {allowed} ({cls.model_fields[name].description})")


def resolve(cls: type[S], given: dict[str, Any]) -> S:
    """Settings of one stage: defaults, and what is given in their place.

    Parameters of other stages may be given too, so that one preset drives all notebooks.

    Raises: SettingsError, one line that names the parameter, its value and what is allowed.
    """
    for name in sorted(given.keys() - DEFAULTS.keys()):
        close = difflib.get_close_matches(name, DEFAULTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed are {', '.join(sorted(DEFAULTS))}"
        raise SettingsError(f"unknown parameter {name}={given[name]!r}; {hint}")
    try:
        settings = cls(**{name: value for name, value in given.items() if name in cls.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        allowed = re.sub("^(Input|String|Value error,) ", "", first["msg"])
        value = "..." if isinstance(first.get("ctx", {}).get("error"), Secret) else first["input"]
        raise wrong(cls, str(first["loc"][0]), value, allowed) from None
    for name, allowed in settings.mistakes():
        raise wrong(cls, name, getattr(settings, name), allowed)
    settings._given = dict(given)
    return settings
