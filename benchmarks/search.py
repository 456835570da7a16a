"""Seconds and memory of the whole path, from an intent to items of a large catalogue, prompts written on the way.

    python benchmarks/search.py outputs/laptop --items 100000

Rows are synthesised as the embedded collection is, without pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import yaml

from udrl_utils.encoder import Encoder
from udrl_utils.machine import peak_memory
from udrl_utils.search import catalogue, drawn, study
from udrl_utils.search.retrieval import PromptSearch, Search, Space
from udrl_utils.settings import ROOT, SearchSettings, resolve
from udrl_utils.student import Student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with a student")
    parser.add_argument("--items", type=int, default=100_000, help="rows of the catalogue")
    parser.add_argument("--intents", type=int, default=60, help="intents of each form")
    arguments = parser.parse_args()
    preset = yaml.safe_load((ROOT / "notebooks" / "presets" / "laptop.yaml").read_text())
    settings = resolve(SearchSettings, preset | {"n_items": arguments.items, "search_intents": arguments.intents})

    facts = drawn.invent(settings.seed, settings.n_items)
    rows = (
        {"id": one.id, "title": one.title, "keywords": one.keywords, "kind": one.kind, "image": None} for one in facts
    )
    items = catalogue.as_table(catalogue.collect(rows)[0])
    embed = Encoder("minilm")
    embed(["one text, so that the model is loaded"])
    began, before = time.perf_counter(), peak_memory() / 2**30
    space = Space(embed, catalogue.vectors_of(items, embed))
    built = time.perf_counter() - began
    embed.forget()

    finder = PromptSearch(Search([space]), Student.load(arguments.run / "03_student"), settings)
    intents = [one.text for one in drawn.judged_intents(facts, settings.seed, settings.search_intents, ())]
    half, most = np.percentile(study.latencies(finder, intents), [50, 95])
    figures = {"items": len(items), "index": round(built, 1), "p50": round(half, 3), "p95": round(most, 3)}
    print(json.dumps(figures | {"GiB before": round(before, 2), "GiB at most": round(peak_memory() / 2**30, 2)}))


if __name__ == "__main__":
    main()
