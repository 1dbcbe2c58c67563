"""Counts clean and certified accuracy from `lipdeploy predict DIR --certify --json`.

The true class of an image is the name of its folder. Reads JSON lines from standard input:

    lipdeploy predict cifar10-jpeg/test --certify --json | python benchmarks/count_certified.py
"""

import json
import sys
from pathlib import Path

RADII_255 = (36, 72, 108, 255)


def main() -> None:
    """Print one line of percentages."""
    rows = [json.loads(line) for line in sys.stdin]
    failed = [row for row in rows if "error" in row]
    hits = [row for row in rows if row.get("label") == Path(row["path"]).parent.name]
    print(f"{len(rows)} images, {len(failed)} unreadable, engine {rows[0]['engine']}")
    print(f"clean               {len(hits) / len(rows):6.1%}")
    for radius in RADII_255:
        certified = sum(row["radius"] >= radius / 255 for row in hits)
        print(f"certified {radius:3d}/255   {certified / len(rows):6.1%}")
    mean = sum(row["radius_255"] for row in hits) / max(1, len(hits))
    print(f"mean radius of the correct ones {mean:.1f}/255")


if __name__ == "__main__":
    main()
