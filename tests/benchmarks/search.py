"""Seconds and memory of the whole path, from an intent to items of a large catalogue, prompts written on the way.

    python tests/benchmarks/search.py outputs/laptop/03_student --items 100000

Rows are synthesised as the embedded collection is, without pictures. The student is loaded as it is, or by --engine:
`--engine package.module:function` is called with the student's folder and returns what can `generate`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import time
from pathlib import Path

import numpy as np
import yaml

from udrl_utils import catalog, collection, study
from udrl_utils.commands import CommandCodec
from udrl_utils.encoder import Encoder
from udrl_utils.retrieval import Index, PromptSearch, Search, Space
from udrl_utils.settings import ROOT, SearchSettings, resolve


def peak_gib() -> float:
    """The most memory that this process has held [GiB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", type=Path, help="folder of a student")
    parser.add_argument("--items", type=int, default=100_000, help="rows of the catalogue")
    parser.add_argument("--intents", type=int, default=60, help="intents of each form")
    parser.add_argument("--engine", default="udrl_utils.student:Student.load", help="module:function that loads it")
    arguments = parser.parse_args()
    preset = yaml.safe_load((ROOT / "notebooks" / "presets" / "laptop.yaml").read_text())
    settings = resolve(SearchSettings, preset | {"n_items": arguments.items, "search_intents": arguments.intents})

    facts = collection.invent(settings.seed, settings.n_items)
    rows = (
        {"id": one.id, "title": one.title, "keywords": one.keywords, "kind": one.kind, "image": None} for one in facts
    )
    items = catalog.as_table(catalog.collect(rows)[0])
    embed = Encoder("minilm")
    embed(["one text, so that the model is loaded"])
    began, before = time.perf_counter(), peak_gib()
    index = Index(embed(catalog.texts_of(items)))
    built = time.perf_counter() - began
    embed.forget()

    module, _, path = arguments.engine.partition(":")
    load = importlib.import_module(module)
    for name in path.split("."):
        load = getattr(load, name)
    finder = PromptSearch(
        Search([Space(embed, index)]), load(arguments.student), CommandCodec.load(arguments.student), settings
    )
    intents = [one.text for one in collection.judged_intents(facts, settings.seed, settings.search_intents, ())]
    half, most = np.percentile(study.latencies(finder, intents), [50, 95])
    figures = {"items": len(items), "index": round(built, 1), "p50": round(half, 3), "p95": round(most, 3)}
    print(json.dumps(figures | {"GiB before": round(before, 2), "GiB at most": round(peak_gib(), 2)}))


if __name__ == "__main__":
    main()
