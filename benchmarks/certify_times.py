"""Time of certificates beside that of inference, at batch 64, medians over several runs.

    python benchmarks/certify_times.py ENGINE FOLDER

FOLDER holds images as test/<class>/*. Decoding is not counted.
"""

import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from lipdeploy.certificate import Answers, Certifier
from lipdeploy.datasets import scan_folder
from lipdeploy.images import network_input
from lipdeploy.predictor import Predictor

BATCH, RUNS = 64, 21


def median_ms(function: Callable[[], object]) -> float:
    """Median time of a call in milliseconds."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main(engine: str, folder: str) -> None:
    """Print a line for each kind of certificate."""
    with Predictor(engine) as predictor:
        sources = islice(scan_folder(Path(folder), "test").spread(BATCH).sources, BATCH)
        size = predictor.network.image_size
        pixels = np.stack([network_input(source, size).pixels for source in sources])
        features, logits = predictor.runtime.run(pixels)
        answers = Answers(pixels.astype(np.float64), features, logits.argmax(axis=1))
        errors = predictor.manifest.engine_errors
        inference = median_ms(lambda: predictor.runtime.run(pixels))
        print(f"{predictor.description}, batch {len(pixels)}: inference {inference:.2f} ms")
        for tight in (False, True):
            certifier = Certifier(predictor.network, predictor.manifest, tight)
            spent = median_ms(lambda c=certifier: c.program_radii(answers, errors))
            name = "tight" if tight else "closed form"
            print(f"program, {name}: {spent:.2f} ms, {100 * spent / inference:.1f} % of inference")
        certifier = Certifier(predictor.network, predictor.manifest)
        spent = median_ms(lambda: certifier.network_radii(answers))
        print(f"network: {spent:.2f} ms, {100 * spent / inference:.1f} % of inference")


if __name__ == "__main__":
    main(*sys.argv[1:])
