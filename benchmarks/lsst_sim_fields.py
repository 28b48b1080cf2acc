"""Blends of another pipeline with some true magnitudes, as fields and the table that lists them.

    python benchmarks/lsst_sim_fields.py $BLENDEM_DATA/lsst_sim_blends results/benchmark_lsst_sim

100 parents of a simulated LSST coadd in grizy (fred3m/scarlet_test, MIT): 0.2 arcsec per pixel, zero
point 27.0, CatSim galaxies. Pixels more than `WINGS` away from the footprint of the parent belong to others and are
masked. `matched.csv` has the catalog's magnitudes and the peak that each belongs to.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.table import Table
from scipy.ndimage import binary_dilation

from blendem.io.fields import write_field
from blendem.io.readers import LSST_PLANES

BANDS, MAGZERO = tuple("grizy"), 27.0
WINGS = (
    3  # pixels around the footprint, with light below the threshold of the detection
)
MATCH = 3.0  # largest distance of a peak from the position in the catalog [pixel]


def inside(footprint: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Pixels of the parent. The files have True outside of it: what holds the peaks is inside."""
    y, x = centers.astype(int).T
    return footprint if footprint[y, x].mean() > 0.5 else ~footprint


def main(folder: Path, out: Path, most: int) -> None:
    """Write the first `most` blends."""
    lines, rows = ["field\tinstrument\tpath"], []
    bits = sum(1 << bit for bit in LSST_PLANES.values())
    (out / "fields").mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.npz"))[:most]:
        name = f"lsst_{path.stem}"
        with np.load(path) as file:
            centers = file["centers"].astype(float)
            own = binary_dilation(inside(file["footprint"], centers), iterations=WINGS)
            catalog = Table(
                {
                    "id": np.arange(len(centers)),
                    "x": centers[:, 1],
                    "y": centers[:, 0],
                    "type": ["galaxy"] * len(centers),
                }
            )
            write_field(
                out / "fields" / f"{name}.fits",
                image=file["images"],
                variance=file["variance"],
                psf=file["psfs"],
                bands=BANDS,
                magzero=MAGZERO,
                mask=(file["mask"] & bits != 0) | ~own,
                catalog=catalog,
            )
            for known in file["matched"]:
                offset = centers - [known["y"], known["x"]]
                distance = np.hypot(*offset.T)
                if distance.min() <= MATCH:
                    rows.append(
                        {
                            "field": name,
                            "id": int(distance.argmin()),
                            "type": known["sourceType"].decode(),
                            "peaks": len(centers),
                            **{f"mag_{b}": float(known[f"{b}magVar"]) for b in BANDS},
                        }
                    )
        lines.append(f"{name}\tlsst_10yr\tfields/{name}.fits")
    if not rows:
        raise SystemExit(f"{folder}: no blends with matched sources")
    pd.DataFrame(rows).to_csv(out / "matched.csv", index=False)
    (out / "fields.tsv").write_text("\n".join(lines) + "\n")
    print(f"{len(lines) - 1} blends, {len(rows)} sources with magnitudes in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-blends", type=int, default=100)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.out, arguments.max_blends)
