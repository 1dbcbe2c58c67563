"""Draws docs/predict.svg: what `lipdeploy predict samples --certify` prints in a terminal.

python benchmarks/terminal_picture.py
"""

import io
import re
from pathlib import Path

from rich.console import Console

from lipdeploy import Predictor
from lipdeploy.locate import find_images
from lipdeploy.report import console, prediction

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the command's own table on the bundled images and save it."""
    screen = {"width": 78, "file": io.StringIO(), "force_terminal": True}
    console.out = Console(record=True, highlight=False, **screen)
    images = find_images([str(ROOT / "samples")])
    with Predictor(ROOT / "samples" / "model.onnx") as predictor:
        rows = prediction.PredictionRows(predictor, min_radius=None)
        found = [rows.row(result) for result in predictor.attempt(images)]
        shown = [row | {"path": str(Path(row["path"]).relative_to(ROOT))} for row in found]
        prediction.write_table(shown, certify=True)
    title = "lipdeploy predict samples --certify"
    picture = console.out.export_svg(title=title)
    # The picture must not fetch fonts from elsewhere.
    local = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    (ROOT / "docs" / "predict.svg").write_text(local)


if __name__ == "__main__":
    main()
