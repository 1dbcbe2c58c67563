"""Counts clean and certified accuracy from `lipdeploy predict DIR --certify --json`.

The true class of an image is the name of its folder. Reads JSON lines from standard input:

    lipdeploy predict DATA/test --certify --json | python benchmarks/count_certified.py
"""

import json
import sys
from fractions import Fraction
from pathlib import Path

RADII_255 = (36, 72, 108, 255)


def main() -> None:
    """Print a line a radius."""
    rows = [json.loads(line) for line in sys.stdin]
    read = [row for row in rows if "error" not in row]
    if not read:
        sys.exit("no predictions: give a folder with test/<class>/* images, make accuracy DATA=DIR")
    hits = [row for row in read if row["label"] == Path(row["path"]).parent.name]
    print(f"{len(rows)} images, {len(rows) - len(read)} unreadable, engine {read[0]['engine']}")
    print(f"clean               {len(hits) / len(rows):6.1%}")
    for radius in RADII_255:
        certified = sum(Fraction(row["radius"]) * 255 >= radius for row in hits)
        print(f"certified {radius:3d}/255   {certified / len(rows):6.1%}")
    mean = sum(row["radius_255"] for row in hits) / max(1, len(hits))
    print(f"mean radius of the correct ones {mean:.1f}/255")


if __name__ == "__main__":
    main()
