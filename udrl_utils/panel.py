"""The probing panel: commands set with sliders, asked of a run's student, in JupyterLab or in Voila.

A run and its settings go in; out come scored samples (`Prober`, in plain Python) and widgets (`Panel`). What cards and
tables look like is not known here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd

from udrl_utils import figures, views
from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.deploy.export import load_engine
from udrl_utils.encoder import Encoder
from udrl_utils.errors import RunError, UserError
from udrl_utils.rewards import load_rewards, read_annotated
from udrl_utils.runs import RunFolder, outputs_root
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnnotationSettings, ProbeSettings
from udrl_utils.student import ready_facts
from udrl_utils.tasks import TASKS
from udrl_utils.text import clean_intent, is_empty, share

STEPS = 10  # values of a sweep
SHIPPED = "ready student"  # its name in the list of runs; a run's name has no space
START = {"length": 18, "relevance": 0.85}  # the command that the panel opens with
COMPARED = {"length": 9, "relevance": 0.15}  # the one that it is compared with
LABEL = {"description_width": "8.5em"}
ROW = w.Layout(flex_flow="row wrap", align_items="center")  # wraps on a narrow page


def runs_with_student() -> list[str]:
    """Names of the runs that have a trained student, the newest first."""
    records = sorted(outputs_root().glob("*/run.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent.name for file in records if "03_student" in RunFolder(file.parent).read()["stages"]]


class Prober:
    """Asks a run's student, or the shipped one, and scores what it writes with the rewards of its run."""

    def __init__(self, run: RunFolder, settings: ProbeSettings):
        """Load the student, the encoder and the test intents.

        Raises: RunError when there is no student, or it was not exported for `engine`; CommandError when the engine
        does not have a sampling option of the settings.
        """
        self.run, self.settings, self.name = run, settings, SHIPPED if settings.student else run.name
        if settings.student:
            facts = ready_facts()
            encoder, found = facts["encoder"], facts["intents"]
        elif "03_student" in run.read().get("stages", {}):
            load_rewards(run, "05_probes")
            encoder = run.settings(AnnotationSettings).encoder
            found = read_annotated(run, "test").groupby("task").intent.unique()
        else:
            raise RunError(f"run={run.name!r} has no student yet: run notebooks/03_udrl_training.ipynb first")
        engine, sampling = load_engine(run, settings.engine, settings.student), settings.sampling()
        engine.sampling_with(**sampling)
        shown = [f"{name}={sampling[name]}" for name in ("min_p", "guidance") if name in engine.knows]
        self.engine = ", ".join([f"{self.name}, computed with {engine.name}", *shown])
        print(self.engine, flush=True)
        embed, self.codec = Encoder(encoder), engine.codec
        embed(["loads the encoder, so that the first probe does not wait for it"])
        self.sampler = Sampler(engine, self.codec.rewards, embed, **sampling)
        self.intents = {
            task: sorted(found.get(task, ()), key=lambda intent: share(intent, settings.seed)) for task in self.tasks
        }

    def other(self, name: str) -> Prober:
        """The student of another run, or the shipped one, with the same settings. Raises: as this class does."""
        if name == SHIPPED:
            return Prober(self.run, self.settings.model_copy(update={"student": "ready"}))
        return Prober(RunFolder(name), self.settings.model_copy(update={"run": name, "student": ""}))

    @property
    def tasks(self) -> list[str]:
        """Tasks that the student was trained on."""
        return sorted(self.codec.edges, key=[*TASKS, *self.codec.edges].index)

    def ask(self, intent: str, command: Command, n: int, **sampling: Any) -> tuple[pd.DataFrame, str]:
        """One probe: n scored samples, and a note when the nearest feasible command was used instead.

        sampling: seed, temperature, banned, keep and other options of `generate`, in place of those of the settings.
        Raises: CommandError when the intent is empty or the command asks for a reward that the student does not know.
        """
        intent = clean_intent(intent)
        if is_empty(intent):
            raise CommandError("the intent is empty: type a few words, such as koi pond, or choose a test intent")
        command, note = self.codec.feasible(command)
        sampler = self.sampler.of(self.sampler.student, **sampling)
        shown = {k: ", ".join(v) if isinstance(v, list) else v for k, v in sampler.sampling.items()}
        return sampler.sample([(intent, command)], n, **shown), note

    def sweep_values(self, name: str) -> list[float]:
        """Values of a sweep of one reward: usual lengths of the train pairs [words], or levels."""
        if name == "length":
            usual = [length for task in self.tasks for length in self.codec.usual_lengths(task)]
            low, high = min(usual), max(usual)
            return np.linspace(low, high, min(STEPS, high - low + 1)).round().astype(int).tolist()
        places = np.linspace(0, self.codec.bins - 1, min(STEPS, self.codec.bins)).round().astype(int)
        return [self.codec.level_of(place) for place in places.tolist()]

    def grid_intents(self) -> list[tuple[str, str]]:
        """(task, intent) of the static sweeps: the settings' intents under every task, or one test intent per task."""
        if self.settings.probe_intents:
            return [(task, intent) for task in self.tasks for intent in self.settings.probe_intents]
        return [(task, pool[0]) for task, pool in self.intents.items() if pool]

    def sweeps(self) -> pd.DataFrame:
        """Samples of each reward swept with the others left open; column `reward` names the one that is swept."""
        asked: list[tuple[str, str, str, Any]] = [
            (task, intent, name, value)
            for task, intent in self.grid_intents()
            for name in self.codec.rewards_of(task)
            for value in self.sweep_values(name)
        ]
        requests = [(intent, Command(task, **{name: value})) for task, intent, name, value in asked]
        samples = self.sampler.sample(requests, self.settings.probe_prompts)
        return samples.assign(reward=[asked[number][2] for number in samples.set])


class CommandBox:
    """A slider for each reward that a student knows; a reward whose box is ticked is left open."""

    def __init__(self, codec: CommandCodec, start: dict[str, float]):
        self.sliders = {name: slider(name, codec, start.get(name)) for name in codec.rewards}
        look = {"description": "leave open", "indent": False, "layout": w.Layout(width="8em")}
        self.open = {name: w.Checkbox(value=name not in start, **look) for name in codec.rewards}
        for name, box in self.open.items():
            w.link((box, "value"), (self.sliders[name], "disabled"))
        rows = [w.HBox([self.sliders[name], self.open[name]]) for name in codec.rewards]
        self.box = w.VBox(rows, layout=w.Layout(width="36em", max_width="100%"))

    def command(self, task: str) -> Command:
        """The command that the sliders stand for."""
        return Command(task, **{name: s.value for name, s in self.sliders.items() if not self.open[name].value})


def slider(name: str, codec: CommandCodec, start: float | None) -> w.IntSlider | w.FloatSlider:
    """Words for a length, the quantile level for any other reward."""
    layout = w.Layout(flex="1 1 auto", width="auto", min_width="0")
    if name == "length":
        value = min(int(start or 18), codec.longest)
        return w.IntSlider(value, 1, codec.longest, description="length [words]", layout=layout, style=LABEL)
    value, text = 0.5 if start is None else start, f"{name} [level]"
    return w.FloatSlider(value, min=0, max=1, step=0.05, description=text, layout=layout, style=LABEL)


class Panel:
    """One command, two commands, a sweep, and the history of all probes, for a run chosen from a list.

    `box` is what a notebook shows. All slow work goes through `_start` and `_wait`: it runs in one thread beside the
    event loop, so that the kernel still answers; only the loop touches widgets, and every error becomes a status line.
    """

    def __init__(self, prober: Prober):
        self.prober, self.history = prober, []
        self._thread, self._work = ThreadPoolExecutor(1), None
        runs = dict.fromkeys([prober.name, *runs_with_student()])
        self.run = w.Dropdown(options=list(runs), value=prober.name, description="run", style=LABEL)
        self.task = w.Dropdown(description="task", style=LABEL)
        wide = w.Layout(flex="1 1 26em", width="auto")
        self.intent = w.Text(description="intent", placeholder="type a few words", style=LABEL, layout=wide)
        self.pick = w.Dropdown(description="test intents", style=LABEL)
        self.prompts = w.BoundedIntText(
            prober.settings.probe_prompts, min=1, max=32, description="prompts", style=LABEL, layout={"width": "14em"}
        )
        self.temperature = w.FloatSlider(
            prober.settings.temperature, min=0.1, max=2, step=0.1, description="temperature", style=LABEL
        )
        lists = {"layout": {"width": "26em"}, "style": LABEL, "placeholder": "words, with commas between"}
        self.banned, self.keep = w.Text(description="never", **lists), w.Text(description="always", **lists)
        self.swept = w.Dropdown(description="reward", style=LABEL)
        self.engine = w.Label()
        self.status = w.HTML(layout=w.Layout(min_height="2.5em"))
        self.stop = w.Button(description="Stop", disabled=True, tooltip="stops when the current prompts are written")
        self.stop.on_click(lambda _: self._work and self._work.cancel())
        work = {"Generate": self.generate, "Compare": self.compare, "Sweep": self.sweep, "Export CSV": self.export}
        self.buttons = {text: w.Button(description=text, button_style="primary") for text in work}
        for text, button in self.buttons.items():
            button.on_click(lambda _, text=text: self._start(work[text]))
        self.shown = {text: w.HTML() for text in work}
        self.first, self.second = w.VBox(), w.VBox()  # hold the command boxes of the chosen run
        self._offer()
        self.run.observe(lambda change: self._start(self.load), "value")
        self.task.observe(lambda change: self._offer_intents(), "value")
        self.pick.observe(self._picked, "value")
        tabs = {
            "One command": [self.buttons["Generate"], self.shown["Generate"]],
            "Two commands": [self.second, self.buttons["Compare"], self.shown["Compare"]],
            "Sweep": [w.HBox([self.swept, self.buttons["Sweep"]], layout=ROW), self.shown["Sweep"]],
            "History": [self.buttons["Export CSV"], self.shown["Export CSV"]],
        }
        rows = [
            w.HBox([self.run, self.task], layout=ROW),
            w.HBox([self.intent, self.pick], layout=ROW),
            self.first,
            w.HBox([self.prompts, self.temperature], layout=ROW),
            w.HBox([self.banned, self.keep], layout=ROW),
            self.engine,
            w.HBox([self.stop, self.status], layout=ROW),
            w.Tab([w.VBox(parts) for parts in tabs.values()], titles=list(tabs)),
        ]
        self.box = w.VBox(rows, layout=w.Layout(max_width="100%"))

    def _offer(self) -> None:
        """Show the controls of the chosen run's student."""
        codec = self.prober.codec
        self.commands = CommandBox(codec, START), CommandBox(codec, COMPARED)
        self.first.children, self.second.children = [self.commands[0].box], [self.commands[1].box]
        for dropdown, options in ((self.task, self.prober.tasks), (self.swept, codec.rewards)):
            dropdown.options, dropdown.index = options, 0
        self.engine.value = self.prober.engine
        self._offer_intents()

    def _offer_intents(self) -> None:
        intents = self.prober.intents[str(self.task.value)][:50]
        self.pick.options = [("choose one", ""), *((views.visible(intent, 80), intent) for intent in intents)]
        self.pick.index = 0
        self.intent.value = self.intent.value or next(iter(intents), "")

    def _picked(self, change: dict[str, Any]) -> None:
        self.intent.value = change["new"] or self.intent.value

    def _start(self, work: Callable[[], Coroutine]) -> None:
        """Start a piece of work, unless one is going on."""
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._guarded(work))

    async def _guarded(self, work: Callable[[], Coroutine]) -> None:
        self._busy(True)
        self.status.value = ""
        try:
            await work()
        except asyncio.CancelledError:
            self._say("Stopped.")
        except UserError as error:
            self._say(str(error), "wrong")
        except Exception as error:  # a background task has no other place to show it
            self._say(f"{type(error).__name__}: {error}", "wrong")
        finally:
            self._busy(False)

    def _busy(self, busy: bool) -> None:
        for control in (*self.buttons.values(), self.run):
            control.disabled = busy
        self.stop.disabled = not busy

    async def _wait(self, what: str, function: Callable, *arguments: Any) -> Any:
        """The result of a function that runs in the thread; the status line counts the seconds."""
        began = time.monotonic()
        job = asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *arguments))
        while not (await asyncio.wait({job}, timeout=0.5))[0]:
            self._say(f"{what} ... {time.monotonic() - began:.0f} s", "busy")
        return job.result()

    def _say(self, text: str, kind: str = "note") -> None:
        self.status.value = views.sentence(text, kind)

    def _keep(self, kind: str, samples: pd.DataFrame) -> None:
        self.history.append(samples.assign(probe=len(self.history) + 1, kind=kind, run=self.prober.name))
        self.shown["Export CSV"].value = views.history(self.history)

    @property
    def sampling(self) -> dict[str, Any]:
        """Temperature, words, and a new seed for each probe, so that the same command is answered by other prompts."""
        lists = {"banned": self.banned.value, "keep": self.keep.value}
        typed = {name: [word.strip() for word in text.split(",") if word.strip()] for name, text in lists.items()}
        return {"temperature": self.temperature.value, "seed": self.prober.settings.seed + len(self.history), **typed}

    async def _ask(self, what: str, command: Command, sampling: dict[str, Any]) -> tuple[pd.DataFrame, str]:
        ask = partial(self.prober.ask, **sampling)
        return await self._wait(what, ask, self.intent.value, command, self.prompts.value)

    async def load(self) -> None:
        """Load the chosen run; the previous one stays if that fails."""
        name = self.run.value
        try:
            self.prober = await self._wait(f"loading {name}", self.prober.other, name)
        finally:
            self.run.value = self.prober.name
        self._offer()
        self._say(f"{name} is ready.")

    async def generate(self) -> None:
        """One command: cards."""
        self.shown["Generate"].value = await self._cards({"": self.commands[0]})

    async def compare(self) -> None:
        """Two commands with the same seed: cards side by side."""
        self.shown["Compare"].value = await self._cards(dict(zip("AB", self.commands, strict=True)))

    async def _cards(self, boxes: dict[str, CommandBox]) -> str:
        began, sampling, parts, notes = time.monotonic(), self.sampling, [], []
        for title, box in boxes.items():
            command = box.command(str(self.task.value))
            samples, note = await self._ask(f"writing {title or 'prompts'}", command, sampling)
            self._keep(f"command {title}".strip(), samples)
            parts.append(views.probe(samples, self.prober.codec, title))
            notes.append(note)
        took = f"{len(samples)} prompts per command in {time.monotonic() - began:.1f} s."
        self._say(" ".join(filter(None, notes)) or took)
        return views.side_by_side(*parts)

    async def sweep(self) -> None:
        """One reward from low to high: the calibration curve, drawn as it grows."""
        name, tables, sampling = str(self.swept.value), [], self.sampling
        if name == "diversity" and self.prompts.value < 2:
            raise UserError("Diversity is measured between prompts: set prompts to 2 or more.")
        values, asked = self.prober.sweep_values(name), self.commands[0].command(str(self.task.value)).asked
        try:
            for step, value in enumerate(values, 1):
                levels: dict[str, Any] = {**asked, name: value}
                command = Command(str(self.task.value), **levels)
                samples, _ = await self._ask(f"sweeping {name}, {step} of {len(values)}", command, sampling)
                tables.append(samples.assign(reward=name))
                drawn = figures.sweep(pd.concat(tables, ignore_index=True), self.prober.codec)
                self.shown["Sweep"].value = views.image(drawn, f"commanded against achieved {name}")
        finally:  # a stopped sweep is kept too
            if tables:
                self._keep(f"sweep of {name}", pd.concat(tables, ignore_index=True))
        self._say(f"{len(values)} commands, {sum(map(len, tables))} prompts.")

    async def export(self) -> None:
        """Save the history as CSV in the run's folder, and offer it as a download."""
        if not self.history:
            raise UserError("There is nothing to export yet: generate some prompts first.")
        file = self.prober.run / "05_probes" / "history.csv"
        file.parent.mkdir(exist_ok=True)
        pd.concat(self.history).to_csv(file, index=False)
        self._say(f"{len(self.history)} probes in {file}")
        self.status.value += views.download(file)
