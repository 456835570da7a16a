"""Seconds and memory of the whole path, from an intent to items of a large catalogue, prompts written on the way.

    python benchmarks/search.py --items 100000

Each item is made of two icons of Font Awesome: its title has both names, its keywords are search terms of both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time

import numpy as np

from udrl_utils.encoder import Encoder
from udrl_utils.machine import peak_memory
from udrl_utils.runs import RunFolder
from udrl_utils.search import icons
from udrl_utils.search.catalogue import as_table, vectors_of
from udrl_utils.search.retrieval import PromptSearch, Search, Space
from udrl_utils.settings import SearchSettings
from udrl_utils.student import Student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="ready", help="ready, or the name of a run")
    parser.add_argument("--items", type=int, default=100_000, help="rows of the catalogue")
    parser.add_argument("--searches", type=int, default=60, help="searches that are timed, one after the other")
    arguments = parser.parse_args()

    rng, names, rows = random.Random(0), list(icons.icons()), []
    for k in range(arguments.items):
        pair = rng.sample(names, 2)
        terms = [rng.sample(icons.halves(name)[0], min(2, len(icons.halves(name)[0]))) for name in pair]
        title = " with ".join(icons.icons()[name]["label"] for name in pair)
        rows.append({"id": str(k), "title": title, "keywords": ", ".join(itertools.chain(*terms)), "image": ""})
    items, embed = as_table(rows), Encoder("minilm")
    embed(["one text, so that the model is loaded"])
    began, before = time.perf_counter(), peak_memory() / 2**30
    search = Search(items, [Space(embed, vectors_of(items, embed))])
    built = time.perf_counter() - began
    embed.forget()

    folder = "ready" if arguments.student == "ready" else RunFolder(arguments.student) / "03_student"
    finder, seconds = PromptSearch(search, Student.load(folder), SearchSettings()), []
    for term in list(icons.judgements(names))[: arguments.searches + 1]:
        began = time.perf_counter()
        finder.find([term])
        seconds.append(time.perf_counter() - began)
    half, most = np.percentile(seconds[1:], [50, 95])  # the first warms up
    figures = {"items": len(items), "index": round(built, 1), "p50": round(half, 3), "p95": round(most, 3)}
    print(json.dumps(figures | {"GiB before": round(before, 2), "GiB at most": round(peak_memory() / 2**30, 2)}))


if __name__ == "__main__":
    main()
