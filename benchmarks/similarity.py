"""Do the rewards rank texts as people do? Spearman's correlation of relevance and diversity with human similarity.

    python benchmarks/similarity.py caption_similarity minilm

The folder holds sts2014_images.test.tsv (score, caption, caption: SemEval 2014, images) and, of Crisscrossed Captions,
cxc_sis_pairs_in_val2017.csv (image1, image2, human_similarity_0_5) with COCO's captions, captions_val2017.csv.gz
(image_id, caption). More encoders may be named, as for parameter encoder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from udrl_utils.encoder import Embed, Encoder
from udrl_utils.rewards import diversity, relevance


def rank_as_people(folder: Path, embed: Embed) -> pd.Series:
    """Spearman's correlations; diversity should fall as similarity rises, so its correlation should be negative.

    Of two captions, relevance is that of one to the other. Of two pictures, which have five captions each, relevance is
    the mean over all pairs of captions, and diversity that of a set of prompts with all ten.
    """
    sts = pd.read_csv(folder / "sts2014_images.test.tsv", sep="\t", names=["score", "intent", "prompt"], quoting=3)
    sts["relevance"] = relevance(sts, embed)
    two = [sts[["intent"]].rename(columns={"intent": "prompt"}), sts[["prompt"]]]
    sets = pd.concat([half.assign(task="", intent=half.index.astype(str)) for half in two], ignore_index=True)
    sts["diversity"] = sets.assign(found=diversity(sets, embed)).groupby(sets.intent.astype(int)).found.mean()

    captions = pd.read_csv(folder / "captions_val2017.csv.gz").groupby("image_id").caption.apply(list)
    pictures = pd.read_csv(folder / "cxc_sis_pairs_in_val2017.csv").reset_index(names="pair")
    sides = [pictures[["pair", side]].assign(prompt=pictures[side].map(captions)) for side in ("image1", "image2")]
    own, other = (side.explode("prompt")[["pair", "prompt"]] for side in sides)
    both = own.merge(other.rename(columns={"prompt": "intent"}), on="pair")
    pictures["relevance"] = both.assign(found=relevance(both, embed)).groupby("pair").found.mean()
    sets = pd.concat([own, other], ignore_index=True).rename(columns={"pair": "intent"}).assign(task="")
    pictures["diversity"] = sets.assign(found=diversity(sets, embed)).groupby("intent").found.mean()
    found = {}
    for name, table, people in (("captions", sts, "score"), ("pictures", pictures, "human_similarity_0_5")):
        for reward in ("relevance", "diversity"):
            found[f"{reward}, {len(table)} pairs of {name}"] = table[reward].corr(table[people], method="spearman")
    return pd.Series(found)


if __name__ == "__main__":
    print(pd.DataFrame({name: rank_as_people(Path(sys.argv[1]), Encoder(name)) for name in sys.argv[2:]}).round(3))
