"""Trains what a JSON file lists, one run after the other, in the processes that torchrun starts.

Starting processes that have torch takes longer than runs as small as those of the tests.
"""

import json
import sys
from pathlib import Path

from helpers import Silent, ignore

from lipdeploy.exporters.validation import certified_shares
from lipdeploy.training.distributed import joined
from lipdeploy.training.session import TrainingRequest, prepare


def main() -> None:
    """Train all; argument: the file, with the fields of `TrainingRequest`."""
    with joined("cpu") as processes:
        for values in json.loads(Path(sys.argv[1]).read_text()):
            places = {name: Path(values[name]) for name in ("data", "out")}
            request = TrainingRequest(**(values | places))
            run = prepare(request, resume=False, progress=ignore, note=ignore, processes=processes)
            run.certify = certified_shares
            run.run(Silent())


if __name__ == "__main__":
    main()
