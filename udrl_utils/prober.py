"""A student made ready to be asked by hand: single probes, sweeps of one reward, the grid of commands, the history."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas

from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.deploy.export import fastest_engine
from udrl_utils.encoder import Encoder
from udrl_utils.rewards import load_rewards, read_annotated
from udrl_utils.runs import RunFolder, outputs_root
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnnotationSettings, ProbeSettings, RunError
from udrl_utils.student import READY, Student, ready_facts
from udrl_utils.tasks import TASKS, clean_intent, share

STEPS = 10  # values of a sweep
SHIPPED = "ready student"  # its name in the list of runs; no run can have it
WORDS_OFF = 2  # a length that is off by more has missed its command


def runs_with_student() -> list[str]:
    """Names of the runs whose student is trained, the newest first."""
    records = sorted(outputs_root().glob("*/run.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent.name for file in records if "03_student" in RunFolder(file.parent).read()["stages"]]


class Prober:
    """A run's student or the shipped one, asked on behalf of a person; what it wrote is scored with its own rewards."""

    def __init__(self, run: RunFolder, settings: ProbeSettings):
        """Load the student, the encoder and the test intents. Raises: RunError when there is no student."""
        self.run, self.settings, self.name = run, settings, SHIPPED if settings.student else run.name
        if settings.student:
            engine, facts = Student.load("ready"), ready_facts()
            encoder, found = facts["encoder"], facts["intents"]
        elif "03_student" in run.read().get("stages", {}):
            load_rewards(run, "05_probes")
            engine, encoder = fastest_engine(run), run.settings(AnnotationSettings).encoder
            found = read_annotated(run, "test").groupby("task").intent.unique()
        else:
            raise RunError(f"run={run.name!r} has no student yet: run notebooks/03_udrl_training.ipynb first")
        embed, self.codec = Encoder(encoder), engine.codec
        embed(["the first text is slow, so that the first probe is not"])
        sampling = {name: value for name, value in settings.sampling().items() if name in engine.knows}
        self.sampler = Sampler(engine, self.codec.rewards, embed, **sampling)
        self.intents = {
            task: sorted(found.get(task, ()), key=lambda intent: share(intent, settings.seed)) for task in self.tasks
        }

    def other(self, name: str) -> Prober:
        """The student of another run, or the shipped one, with the same settings. Raises: as this class."""
        if name == SHIPPED:
            return Prober(self.run, self.settings.model_copy(update={"student": "ready"}))
        return Prober(RunFolder(name), self.settings.model_copy(update={"run": name, "student": ""}))

    @property
    def tasks(self) -> list[str]:
        """Tasks that the student was trained on."""
        return [task for task in TASKS if task in self.codec.edges]

    def ask(self, intent: str, command: Command, n: int, **sampling: float) -> tuple[pandas.DataFrame, str]:
        """One probe: n scored samples, and a note where the nearest feasible command was asked for instead.

        sampling: temperature, seed and the like, where they are to differ from the settings'.
        Raises: CommandError when the intent is empty or the command asks for what the student does not know.
        """
        intent = clean_intent(intent)
        if not intent:
            raise CommandError("the intent is empty: type a few words, such as koi pond, or pick a test intent")
        command, note = self.codec.feasible(command)
        sampler = self.sampler.of(self.sampler.student, **sampling)
        return sampler.sample([(intent, command)], n, **sampler.sampling), note

    def sweep_values(self, name: str) -> list[float]:
        """Values of a sweep of one reward: usual lengths of the train pairs, the levels of the others."""
        if name == "length":
            usual = [length for task in self.tasks for length in self.codec.usual_lengths(task)]
            low, high = min(usual), max(usual)
            return np.linspace(low, high, min(STEPS, high - low + 1)).round().astype(int).tolist()
        places = np.linspace(0, self.codec.bins - 1, min(STEPS, self.codec.bins)).round().astype(int)
        return [self.codec.level_of(place) for place in places.tolist()]

    def sweep(self, intent: str, command: Command, name: str, n: int, **sampling: float) -> Iterator[pandas.DataFrame]:
        """Samples value by value, all other rewards as commanded; column `reward` names the one that is swept."""
        for value in self.sweep_values(name):
            asked = Command(command.task, **{**command.asked, name: value})
            yield self.ask(intent, asked, n, **sampling)[0].assign(reward=name)

    def grid_intents(self) -> list[tuple[str, str]]:
        """(task, intent) of the grid: those of the settings under every task, else one test intent per task."""
        if self.settings.probe_intents:
            return [(task, intent) for task in self.tasks for intent in self.settings.probe_intents]
        return [(task, pool[0]) for task, pool in self.intents.items() if pool]

    def sweeps(self) -> pandas.DataFrame:
        """Samples of every reward swept by itself, the others left open, for the intents of the grid."""
        known = self.codec.rewards_of
        asked = [(t, i, name, v) for t, i in self.grid_intents() for name in known(t) for v in self.sweep_values(name)]
        requests = [(intent, Command(task, **{name: value})) for task, intent, name, value in asked]
        samples = self.sampler.sample(requests, self.settings.probe_prompts)
        return samples.assign(reward=[asked[number][2] for number in samples.set])


def probed_codec(run: RunFolder) -> CommandCodec:
    """Codec of the student that the sweeps of a run were asked of."""
    shipped = run.settings(ProbeSettings).student
    return CommandCodec.load(READY if shipped else run / "03_student")


def grid(sweeps: pandas.DataFrame) -> pandas.DataFrame:
    """The grid of commands: of each sweep one prompt under the lowest, the middle and the highest; a set per intent."""
    first = sweeps.drop_duplicates("set")
    sets = first.groupby(["task", "intent", "reward"], sort=False)["set"]
    place, last = sets.cumcount(), sets.transform("size") - 1
    chosen = first[(place == 0) | (place == last // 2) | (place == last)]
    return chosen.assign(set=chosen.groupby(["task", "intent"], sort=False).ngroup())


def off_target(samples: pandas.DataFrame, codec: CommandCodec) -> pandas.DataFrame:
    """Which samples missed which commanded reward, one column of bool for each.

    Missed is a length that is off by more than 2 words, and any other reward whose level token is neither the one
    that was commanded nor next to it.
    """

    def missed(row: pandas.Series, name: str) -> bool:
        asked, achieved = row[f"asked_{name}"], row[name]
        if pandas.isna(asked) or pandas.isna(achieved):
            return False
        if name == "length":
            return abs(asked - achieved) > WORDS_OFF
        return abs(codec.bin_of_level(row.task, name, asked) - codec.bin_of_value(row.task, name, achieved)) > 1

    names = [name for name in codec.rewards if f"asked_{name}" in samples]
    missing = {name: [missed(row, name) for _, row in samples.iterrows()] for name in names}
    return pandas.DataFrame(missing, index=samples.index, dtype=bool)
