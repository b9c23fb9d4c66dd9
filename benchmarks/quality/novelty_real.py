"""How often real sections are called unlike the training ones: left-out sections, another stain, laboratory, tissue.

Pictures: the olfactory bulbs of Stahl et al. (2016), of which one section is left out at a time. It is shown as it is,
as if it had taken up more stain (optical density times 1.25 and 1.5), and with the pictures of two arrays of the same
tissue from elsewhere and of two sections of a breast tumour. Counts: patients of HER2ST (Andersson et al., 2021), one
left out at a time, shown as they are and with the counts of every gene under the name of another. Nothing is chosen
here.

    python benchmarks/quality/novelty_real.py [--data ../shared/data]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from her2st_lopo import load as patients
from novelty import with_genes_of

import histoweave as hw

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CROPS = {"crops_detail": 0.55, "crops": 1.1, "crops_context": 3.0}  # in array pitches, as by default


def cut(section, pitch_um: float):
    table = hw.io.to_anndata(section)
    hw.pp.crops(table, size_um={key: pitches * pitch_um for key, pitches in CROPS.items()}, out_px=64)
    return table


def stained(table, density: float):
    """The same crops as if every point had taken up more of both stains."""
    out = table.copy()
    for key in CROPS:
        od = -np.log((out.obsm[key].astype(np.float32) + 1) / 256)
        out.obsm[key] = np.clip(256 * np.exp(-density * od) - 1, 0, 255).round().astype(np.uint8)
    return out


def pictures(folder: Path) -> pd.DataFrame:
    own = [cut(hw.datasets.mob_st(section=i, data_dir=folder), 200) for i in range(1, 8)]
    elsewhere = []
    for name in ("MOB1", "MOB2"):
        image = folder / "mob_st" / "unlabelled" / f"{name}.jpg"
        spots = image.with_name(f"alignment_table_{name}.tsv")
        elsewhere.append(cut(hw.io.read_st(spots=spots, image=image, library_id=name, pitch_um=141.4), 141.4))
    tumours = [cut(hw.datasets.her2st(section=name, data_dir=folder), 200) for name in ("C2", "C3")]
    rows = []
    for i, held_out in enumerate(own):
        train = hw.io.concat([table for j, table in enumerate(own) if j != i])
        clf = hw.models.RegionClassifier(genes=None, fusion_options={"heads": ("linear",)}).fit(train)
        kinds = {"usual": [held_out], "same tissue, elsewhere": elsewhere, "breast tumour": tumours}
        kinds |= {f"stain {d} times as dense": [stained(held_out, d)] for d in (1.25, 1.5)}
        rows += [clf.novelty(table).assign(kind=kind) for kind, tables in kinds.items() for table in tables]
    return pd.concat(rows).query("modality == 'image'")


def counts(folder: Path) -> pd.DataFrame:
    table = patients(folder)
    donor, rows = table.obs["donor"].astype(str).to_numpy(), []
    for patient in np.unique(donor):
        held_out = table[donor == patient].copy()
        clf = hw.models.RegionClassifier(image=None, fusion_options={"heads": ("linear",)})
        clf.fit(table[donor != patient].copy())
        for kind, shown in {"usual": held_out, "genes under other names": with_genes_of(held_out, 0)}.items():
            rows.append(clf.novelty(shown).assign(kind=kind))
    return pd.concat(rows).query("modality == 'gene'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    hw.settings.progress = False
    warnings.simplefilter("ignore")
    parts = {"olfactory bulb, pictures": pictures(args.data), "breast tumours, counts": counts(args.data)}
    found = pd.concat(parts, names=["trained on"]).reset_index(level=0)
    by = found.groupby(["trained on", "kind"], sort=False)
    table = by["out_of_distribution"].agg(flagged="sum", of="size")
    print(table.assign(**{"spots beyond their limit": by["novel_spots"].mean().round(3)}).to_markdown())


if __name__ == "__main__":
    main()
