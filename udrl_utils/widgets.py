"""The probing panel: commands asked of a run's student with sliders, in JupyterLab or in Voila.

A kernel that writes prompts still answers: what takes long runs beside its event loop, one piece of work at a time, and
only the loop itself touches the widgets. A mistake is shown as a sentence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import pandas

from udrl_utils import figures, views
from udrl_utils.commands import Command
from udrl_utils.prober import Prober, runs_with_student
from udrl_utils.settings import UserError

if TYPE_CHECKING:
    from udrl_utils.commands import CommandCodec

START = {"length": 18, "relevance": 0.85}  # what a panel opens with, where the student knows it; else open
COMPARED = {"length": 9, "relevance": 0.15}
LABEL = {"description_width": "8.5em"}
ROW = w.Layout(flex_flow="row wrap", align_items="center")  # folds where the page is narrow


class CommandBox:
    """A slider for each reward that a student knows; a reward whose box is ticked is left open."""

    def __init__(self, codec: CommandCodec, start: dict[str, float]):
        self.sliders = {name: slider(name, codec, start.get(name)) for name in codec.rewards}
        self.open = {
            name: w.Checkbox(
                value=name not in start,
                description="open",
                tooltip=f"leave {name} open",
                indent=False,
                layout=w.Layout(width="5em"),
            )
            for name in codec.rewards
        }
        for name, box in self.open.items():
            self.sliders[name].disabled = box.value
            w.link((box, "value"), (self.sliders[name], "disabled"))
        rows = [w.HBox([self.sliders[name], self.open[name]]) for name in codec.rewards]
        self.box = w.VBox(rows, layout=w.Layout(width="34em", max_width="100%"))

    def command(self, task: str) -> Command:
        """What the sliders ask for."""
        return Command(task, **{name: s.value for name, s in self.sliders.items() if not self.open[name].value})


def slider(name: str, codec: CommandCodec, start: float | None) -> w.IntSlider | w.FloatSlider:
    """Words of a length, or the quantile level of any other reward."""
    layout = w.Layout(flex="1 1 auto", width="auto", min_width="0")
    if name == "length":
        value = min(int(start or 18), codec.longest)
        return w.IntSlider(value, 1, codec.longest, description="length [words]", layout=layout, style=LABEL)
    value, text = 0.5 if start is None else start, f"{name} [level]"
    return w.FloatSlider(value, min=0, max=1, step=0.05, description=text, layout=layout, style=LABEL)


class Panel:
    """One command, two commands, a sweep and the history of both, for a run chosen from a list. `box` is shown."""

    def __init__(self, prober: Prober):
        self.prober, self.history = prober, []
        self._thread, self._work = ThreadPoolExecutor(1), None
        runs = dict.fromkeys([prober.name, *runs_with_student()])
        self.run = w.Dropdown(options=list(runs), value=prober.name, description="run", style=LABEL)
        self.task = w.Dropdown(description="task", style=LABEL)
        wide = w.Layout(flex="1 1 26em", width="auto")
        self.intent = w.Text(description="intent", placeholder="type a few words", style=LABEL, layout=wide)
        self.pick = w.Dropdown(description="or pick one", style=LABEL)
        self.prompts = w.BoundedIntText(
            prober.settings.probe_prompts, min=1, max=32, description="prompts", style=LABEL, layout={"width": "14em"}
        )
        self.temperature = w.FloatSlider(
            prober.settings.temperature, min=0.1, max=2, step=0.1, description="temperature", style=LABEL
        )
        self.swept = w.Dropdown(description="reward", style=LABEL)
        self.progress = w.IntProgress(0, 0, 1, layout=w.Layout(width="12em", visibility="hidden"))
        self.status = w.HTML(layout=w.Layout(min_height="2.5em"))
        self.stop = w.Button(description="Stop", disabled=True, tooltip="stop after the prompts that are being written")
        self.stop.on_click(lambda _: self._work and self._work.cancel())
        self.buttons = {
            text: self._button(text, work)
            for text, work in {
                "Generate": self.generate,
                "Compare": self.compare,
                "Sweep": self.sweep,
                "Export CSV": self.export,
            }.items()
        }
        self.shown = {text: w.HTML() for text in self.buttons}
        self.first, self.second = w.VBox(), w.VBox()  # hold the command boxes of the run that is chosen
        self._offer()
        self.run.observe(lambda change: self._begin(self.load), "value")
        self.task.observe(lambda change: self._offer_intents(), "value")
        self.pick.observe(self._picked, "value")
        self.box = w.VBox([*self._inputs(), self._tabs()], layout=w.Layout(max_width="100%"))

    def _inputs(self) -> list[w.Widget]:
        return [
            w.HBox([self.run, self.task], layout=ROW),
            w.HBox([self.intent, self.pick], layout=ROW),
            self.first,
            w.HBox([self.prompts, self.temperature], layout=ROW),
            w.HBox([self.stop, self.progress, self.status], layout=ROW),
        ]

    def _tabs(self) -> w.Tab:
        above = {
            "Ask": [self.buttons["Generate"], self.shown["Generate"]],
            "Compare": [self.second, self.buttons["Compare"], self.shown["Compare"]],
            "Sweep": [w.HBox([self.swept, self.buttons["Sweep"]], layout=ROW), self.shown["Sweep"]],
            "History": [self.buttons["Export CSV"], self.shown["Export CSV"]],
        }
        return w.Tab([w.VBox(parts) for parts in above.values()], titles=list(above))

    def _button(self, text: str, work: Callable[[], Coroutine]) -> w.Button:
        button = w.Button(description=text, button_style="primary")
        button.on_click(lambda _: self._begin(work))
        return button

    def _offer(self) -> None:
        """Controls for what this run's student knows."""
        codec = self.prober.codec
        self.commands = CommandBox(codec, START), CommandBox(codec, COMPARED)
        self.first.children, self.second.children = [self.commands[0].box], [self.commands[1].box]
        for dropdown, options in ((self.task, self.prober.tasks), (self.swept, codec.rewards)):
            dropdown.options, dropdown.index = options, 0
        self._offer_intents()

    def _offer_intents(self) -> None:
        intents = self.prober.intents[self.task.value][:50]
        self.pick.options = [("test intents ...", ""), *((views.visible(intent, 80), intent) for intent in intents)]
        self.pick.index = 0
        self.intent.value = self.intent.value or next(iter(intents), "")

    def _picked(self, change: dict[str, Any]) -> None:
        self.intent.value = change["new"] or self.intent.value

    def _begin(self, work: Callable[[], Coroutine]) -> None:
        """Start a piece of work, unless one is under way."""
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._watched(work()))

    async def _watched(self, work: Coroutine) -> None:
        controls = [*self.buttons.values(), self.run]
        for control in controls:
            control.disabled = True
        self.stop.disabled = False
        self.status.value = ""
        try:
            await work
        except asyncio.CancelledError:
            self._say("Stopped.")
        except UserError as error:
            self._say(str(error), "wrong")
        except Exception as error:  # nobody waits for this task: what is not said here would be lost
            self._say(f"{type(error).__name__}: {error}", "wrong")
        finally:
            for control in controls:
                control.disabled = False
            self.stop.disabled = True
            self.progress.layout.visibility = "hidden"

    async def _beside(self, what: str, function: Callable) -> Any:
        """Result of a function that runs beside the event loop; says how long it has been at it."""
        began = time.monotonic()
        job = asyncio.get_running_loop().run_in_executor(self._thread, function)
        while not (await asyncio.wait({job}, timeout=0.5))[0]:
            self._say(f"{what} ... {time.monotonic() - began:.0f} s", "busy")
        return job.result()

    def _say(self, text: str, kind: str = "note") -> None:
        self.status.value = views.sentence(text, kind)

    def _keep(self, kind: str, samples: pandas.DataFrame) -> None:
        """Add a probe to the history."""
        self.history.append(samples.assign(probe=len(self.history) + 1, kind=kind, run=self.prober.name))
        self.shown["Export CSV"].value = views.history(self.history)

    @property
    def sampling(self) -> dict[str, Any]:
        """Another seed for every probe, so that a second look at the same command shows other prompts."""
        return {"temperature": self.temperature.value, "seed": self.prober.settings.seed + len(self.history)}

    async def _ask(self, kind: str, box: CommandBox, sampling: dict[str, Any]) -> tuple[pandas.DataFrame, str]:
        ask = partial(self.prober.ask, self.intent.value, box.command(self.task.value), self.prompts.value, **sampling)
        samples, note = await self._beside(f"writing {self.prompts.value} prompts", ask)
        self._keep(kind, samples)
        return samples, note

    async def load(self) -> None:
        """Make the chosen run ready; the one before stays where that fails."""
        name = self.run.value
        try:
            self.prober = await self._beside(f"loading {name}", partial(self.prober.other, name))
        finally:
            self.run.value = self.prober.name
        self._offer()
        self._say(f"{name} is ready.")

    async def generate(self) -> None:
        """One command: cards."""
        began = time.monotonic()
        samples, note = await self._ask("one", self.commands[0], self.sampling)
        self.shown["Generate"].value = views.probe(samples, self.prober.codec)
        self._say(note or f"{len(samples)} prompts in {time.monotonic() - began:.1f} s.")

    async def compare(self) -> None:
        """Two commands, the same seed: cards side by side."""
        began, sampling, parts, notes = time.monotonic(), self.sampling, [], []
        for title, box in zip("AB", self.commands, strict=True):
            samples, note = await self._ask(f"two, {title}", box, sampling)
            parts.append(views.probe(samples, self.prober.codec, title))
            notes.append(note)
        self.shown["Compare"].value = views.side_by_side(*parts)
        took = f"{self.prompts.value} prompts each in {time.monotonic() - began:.1f} s."
        self._say(" ".join(filter(None, notes)) or took)

    async def sweep(self) -> None:
        """One reward from low to high: the calibration curve, as it forms."""
        name, tables = self.swept.value, []
        if name == "diversity" and self.prompts.value < 2:
            raise UserError("Diversity is measured between prompts: ask for two or more.")
        values = self.prober.sweep_values(name)
        self.progress.max, self.progress.value, self.progress.layout.visibility = len(values), 0, "visible"
        command = self.commands[0].command(self.task.value)
        steps = self.prober.sweep(self.intent.value, command, name, self.prompts.value, **self.sampling)
        try:
            for _ in values:
                tables.append(await self._beside(f"sweeping {name}", partial(next, steps)))
                self.progress.value += 1
                drawn = figures.sweep(pandas.concat(tables, ignore_index=True), self.prober.codec)
                self.shown["Sweep"].value = views.image(drawn, f"commanded against achieved {name}")
        finally:  # what was written before a stop is kept too
            if tables:
                self._keep(f"sweep of {name}", pandas.concat(tables, ignore_index=True))
        self._say(f"{len(values)} commands, {sum(map(len, tables))} prompts.")

    async def export(self) -> None:
        """The history as CSV, in the run's folder and to download."""
        if not self.history:
            raise UserError("There is no probe to export yet: generate some prompts first.")
        file = self.prober.run / "05_probes" / "history.csv"
        file.parent.mkdir(exist_ok=True)
        pandas.concat(self.history).to_csv(file, index=False)
        self._say(f"{len(self.history)} probes in {file}")
        self.status.value += views.download(file)
