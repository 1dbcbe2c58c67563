"""Arguments and options of `lipdeploy evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lipdeploy.cli.options import one_of
from lipdeploy.errors import UsageError

CORRUPTION_NAMES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "gaussian_blur",
    "motion_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
)
"""The keys of `lipdeploy.corruptions.CORRUPTIONS`, which is not imported for a help text."""


def check_no_corruption(operands: Sequence[str]) -> None:
    """Raise UsageError where a model or the test set is the name of a corruption, and no file."""
    for operand in operands:
        if operand.split(",")[0] in CORRUPTION_NAMES and not Path(operand).exists():
            raise UsageError(
                f"{operand}: a corruption, not a file; --corruptions stands alone and takes all: "
                f"did you mean --corruption {operand}?"
            )


def _no_range(texts: list[str] | None) -> list[str] | None:
    """The severities as they are; a range is refused with the way to write it."""
    for text in texts or ():
        if "-" in text:
            raise UsageError(f"--severity {text}: expected numbers between commas, as 1,2,3,4,5")
    return texts


EvaluatedModels = Annotated[
    list[Path],
    typer.Argument(
        metavar="MODEL...",
        help="Exported engines, or a model.pt, which is frozen as by export; several are compared "
        "image by image.",
    ),
]
TestData = Annotated[
    str,
    typer.Argument(
        autocompletion=one_of("cifar10", "cifar100"),
        help="cifar10, cifar100, a folder with test/<class>/* images, a .csv list with the columns "
        "path (relative to it) and label, or .parquet or .tar (WebDataset) files: one, a folder of "
        "them, or a quoted pattern as 'test-{000..009}.tar'.",
    ),
]
Radii = Annotated[
    list[str] | None,
    typer.Option(
        "--radii",
        help="Radius to count at, as 36/255 or 0.5; several, or several separated by commas. By "
        "default 36/255,72/255,108/255,1.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Only this many images, at equal distances.")]
ImageTable = Annotated[Path | None, typer.Option("--csv", help="Write a CSV line an image here.")]
ParquetTable = Annotated[
    Path | None, typer.Option("--parquet", help="Write the same lines as a Parquet file here.")
]
Curve = Annotated[
    Path | None, typer.Option(help="Draw certified accuracy against the radius here, as a PNG.")
]
Report = Annotated[
    Path | None,
    typer.Option(
        help="Write a report here, a single HTML file: what is guaranteed, curves, classes, images."
    ),
]
ResumeFolder = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        help="Keep the result of each image in this folder, and go on from what is there: the same "
        "command again after a kill ends with the same numbers. Other artifacts or images than it "
        "was begun with are refused by hash.",
    ),
]

Corruptions = Annotated[
    bool,
    typer.Option(
        "--corruptions",
        help="Count right and certified answers on corrupted images, too: noise, blur, light, "
        "pixelation and JPEG as in CIFAR-10-C, of the 8-bit image of the network's size. A radius "
        "is then one around the corrupted image; nothing is guaranteed about the corruption. Exit "
        "status 1 if an answer inside of the clean image's radius contradicts its certificate.",
    ),
]
Corruption = Annotated[
    list[str] | None,
    typer.Option(
        "--corruption",
        autocompletion=one_of(*CORRUPTION_NAMES),
        help=f"Only this corruption; several, or several separated by commas. One of "
        f"{', '.join(CORRUPTION_NAMES)}.",
    ),
]
Severity = Annotated[
    list[str] | None,
    typer.Option(
        "--severity",
        callback=_no_range,
        autocompletion=one_of("1", "2", "3", "4", "5"),
        help="Severity of the corruptions, 1 to 5; several, or several separated by commas. By "
        "default 1,2,3,4,5.",
    ),
]
CorruptionSeed = Annotated[int, typer.Option(help="Seed of the corruptions' random numbers.")]

Attack = Annotated[
    bool,
    typer.Option(
        "--attack",
        help="Attack the right answers, too, and show certified accuracy, accuracy under attack "
        "and what lies between; every adversarial example is confirmed by the engine. Exit status "
        "1 if one contradicts a certificate.",
    ),
]
AttackImages = Annotated[
    int | None,
    typer.Option(
        help="Attack only this many of the images, at equal distances; by default all of them."
    ),
]
AttackSeed = Annotated[int, typer.Option(help="Seed of the attacks' random starts.")]
AutoAttack = Annotated[
    bool,
    typer.Option(
        "--auto-attack",
        help="Run AutoAttack, too, at each radius on every image not broken there, certified or "
        "not: about 7,000 evaluations of the network each, so use --attack-images. Implies "
        "--attack; needs pyautoattack.",
    ),
]
Explain = Annotated[
    Path | None,
    typer.Option(
        help="Folder for pictures of what the attacks found (images beside their adversarial "
        "examples, both curves) and a table of all attacked images; implies --attack.",
    ),
]
ExplainImage = Annotated[
    list[str] | None,
    typer.Option(
        help="End of the path of an image to draw; several. By default those with the largest and "
        "smallest radius and the smallest ratio of perturbation to radius.",
    ),
]
