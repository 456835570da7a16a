"""What a run of any size takes, reckoned before it: requests, tokens, hours, cost, disk and memory.

In go the settings of a preset, a number of pairs and the speeds of a teacher and a GPU; out comes a table that says how
each figure is reckoned. Sizes of texts are those of the recorded prompts, and nothing is asked or trained.
"""

from __future__ import annotations

from math import ceil
from typing import Any, NamedTuple

from udrl_utils.rounds import PASSES, PROMPTS_PER_SET
from udrl_utils.settings import TrainingSettings
from udrl_utils.tasks import TASKS, load_data
from udrl_utils.teachers.replies import Request, messages, single_messages
from udrl_utils.trainer import schedule

# Means of a recording of 16,513 prompts for 3,506 intents; tokens are those of the shipped base's tokenizer, whose
# vocabulary of 4,096 cuts text finer than that of a large model.
KEPT = 0.879  # share of the prompts asked for that pass the filters
PROMPT_CHARACTERS, PROMPT_WORDS, PROMPT_TOKENS = 55.8, 9.3, 13.5
INTENT_CHARACTERS, INTENT_TOKENS = 23.7, 5.9
CHARACTERS_PER_TOKEN = PROMPT_CHARACTERS / PROMPT_TOKENS
# Bytes: of the shards of a run of 713 pairs; rows and memory are reckoned from what they hold, and not yet measured
JOURNAL_LINE = 100  # of a reply in the journal, beside its text
PAIR_ON_DISK, REWARD_ON_DISK, ROW_ON_DISK = 100, 8, 260
PAIR_IN_MEMORY, PROCESS_IN_MEMORY = 900, 800_000_000  # of a process of notebook 03
TEXTS_PER_CORE = 87  # texts a second that the sentence encoder embeds on one core (docs/deployment.md)
MEASURED_PARAMETERS = 93_800_000  # of the student whose training speed is TRAINING_SPEED


class Speeds(NamedTuple):
    """How fast a teacher and a GPU are, all servers or GPUs together; the defaults are of one H100."""

    writing: float = 5777  # tokens a second of Llama 3.1 8B in FP8 by vLLM (Red Hat, MLPerf Inference 5.1)
    reading: float = 25_000  # tokens a second where hardly any are written: 16 GFLOP each, 40% of 989 TFLOP/s
    training: float = 174_000  # tokens a second of a student of MEASURED_PARAMETERS (benchmarks/gpu.py)


def estimate(pairs: int, settings: dict[str, Any], speeds: Speeds) -> list[tuple[str, str, str]]:
    """Rows of (what, how much, how that is reckoned) for a run that keeps so many pairs; settings are by stage."""
    distillation, annotation, training = (settings[stage] for stage in ("01_pairs", "02_annotated", "03_student"))
    n, several = distillation.prompts_per_intent, distillation.teacher_intents_per_request
    asked = pairs / KEPT
    intents = ceil(asked / n)
    read, written, requests = teacher_tokens(intents, n, distillation.teacher_form, several)
    scores = pairs * annotation.judge_votes if "judge" in annotation.rewards else 0
    pair_and_rubric = len(load_data("judge")["instruction"]) + 40 + PROMPT_CHARACTERS + INTENT_CHARACTERS
    graded = scores * pair_and_rubric / CHARACTERS_PER_TOKEN
    train = pairs * (1 - distillation.validation_fraction - distillation.test_fraction)
    known = training.base == distillation.teacher == "recorded"
    training = schedule(training, round(train), round(train * PROMPT_TOKENS), known).of(training)
    sets = min(training.round_sets, train / 2)
    hindsight = PROMPTS_PER_SET * sets * training.rounds * (training.rounds + 1) / 2
    row = row_tokens(len(annotation.rewards), training.horizon)
    seen = row * (train * training.epochs * (1 + training.plain_sft) + PASSES * 3 * hindsight)
    parameters = student_parameters(training)
    rate = speeds.training * MEASURED_PARAMETERS / parameters
    on_disk = disk(pairs, requests, written, len(annotation.rewards), parameters)
    return [
        ("intents", count(intents), f"{n} prompts each, of which {KEPT:.0%} pass the filters, as of the recording's"),
        ("requests to the teacher", count(requests), f"teacher_form={distillation.teacher_form}"),
        ("tokens that it reads, writes", f"{count(read)}, {count(written)}", "the messages as they are sent"),
        ("hours of the teacher", hours(written / speeds.writing), f"{speeds.writing:,.0f} tokens written a second"),
        ("cost of the teacher", *cost(read, written, distillation.teacher_prices)),
        ("requests to the judge", count(scores), "one per pair and vote" if scores else "rewards hold no judge"),
        ("hours of the judge", hours(graded / speeds.reading), f"{speeds.reading:,.0f} tokens read a second"),
        ("core hours of the encoder", hours((pairs + intents) / TEXTS_PER_CORE), f"{TEXTS_PER_CORE} texts a second"),
        ("student", f"{count(parameters)} parameters", f"{training.n_layer} layers x {training.n_embd}"),
        ("tokens that it is trained on", count(seen), f"{row:.0f} a pair; {passes(training)}"),
        ("GPU hours of training", hours(seen / rate), f"{rate:,.0f} tokens a second: as measured, by its size"),
        ("disk", size(on_disk), "pairs, replies, rows, checkpoints"),
        ("memory of a worker", size(PROCESS_IN_MEMORY), "one shard, and the encoder"),
        ("memory of a training process", size(PROCESS_IN_MEMORY + PAIR_IN_MEMORY * train), "all pairs"),
    ]


def teacher_tokens(intents: int, n: int, form: str, several: int) -> tuple[float, float, int]:
    """Tokens read, tokens written and requests for n prompts of each intent."""
    intent = "x" * round(INTENT_CHARACTERS)
    if form == "single":
        chats = [single_messages(Request(task, intent, n), k) for task in TASKS for k in range(n)]
        requests, reply = intents * n, PROMPT_CHARACTERS
    else:
        chats = [messages(task, [intent] * several, n) for task in TASKS]
        requests, reply = ceil(intents / several), several * n * (PROMPT_CHARACTERS + 4)
    chat = sum(len(turn["content"]) for chat in chats for turn in chat) / len(chats)
    return requests * chat / CHARACTERS_PER_TOKEN, requests * reply / CHARACTERS_PER_TOKEN, requests


def row_tokens(rewards: int, horizon: int) -> float:
    """Tokens of a training row: command, intent, end of prefix, prompt with its notes of the length to come, end."""
    notes = PROMPT_WORDS / horizon if horizon else 0
    return 1 + rewards + INTENT_TOKENS + 1 + PROMPT_TOKENS + notes + 1


def student_parameters(training: TrainingSettings) -> int:
    """Parameters of a GPT-2 of that shape, its embeddings shared with its last layer."""
    width = training.n_embd
    layers = training.n_layer * (12 * width**2 + 13 * width)
    return width * (training.vocab_size + training.n_positions) + layers + 2 * width


def disk(pairs: int, requests: int, written: float, rewards: int, parameters: int) -> float:
    """Bytes of a run folder while its student is trained: two checkpoints are there at once."""
    journal = requests * JOURNAL_LINE + written * CHARACTERS_PER_TOKEN
    checkpoints = 2 * 12 * parameters  # weights and two moments of AdamW, in float32
    return journal + pairs * (2 * PAIR_ON_DISK + rewards * REWARD_ON_DISK + ROW_ON_DISK) + checkpoints


def cost(read: float, written: float, prices: list[float]) -> tuple[str, str]:
    """What the teacher's tokens cost, and at which prices."""
    if not prices:
        return "-", "teacher_prices are not set"
    spent = (read * prices[0] + written * prices[1]) / 1e6
    return f"{spent:,.0f}", f"{prices[0]}, {prices[1]} for a million tokens in, out"


def passes(training: TrainingSettings) -> str:
    """What the student's tokens are counted for."""
    parts = [
        f"{training.epochs:g} {'pass' if training.epochs == 1 else 'passes'}",
        "the plain baseline too" * training.plain_sft,
    ]
    return ", ".join(filter(None, [*parts, f"{training.rounds} rounds" * bool(training.rounds)]))


def count(number: float) -> str:
    """A number of things, rounded to three figures: 52 million."""
    for name, unit in (("billion", 1e9), ("million", 1e6)):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{round(number):,}"


def hours(seconds: float) -> str:
    """Hours, rounded to two figures or to whole ones."""
    return f"{seconds / 3600:,.0f}" if seconds >= 36_000 else f"{seconds / 3600:.2g}"


def size(number: float) -> str:
    """Bytes in GB."""
    return f"{number / 1e9:,.1f} GB"


def page(rows: list[tuple[str, str, str]], pairs: int) -> str:
    """The rows as a table in Markdown."""
    lines = [f"| {count(pairs)} pairs | | reckoned from |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
