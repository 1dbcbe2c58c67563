"""The attack of `lipdeploy evaluate --attack`."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.cli.values import holds_tensors
from lipdeploy.errors import UsageError
from lipdeploy.files import make_writable_folder
from lipdeploy.report.console import print_note

if TYPE_CHECKING:
    from lipdeploy.attacks.attacker import AttackOptions
    from lipdeploy.datasets import LabelledSources
    from lipdeploy.predictor import Predictor
    from lipdeploy.sandwich import Gallery, Sandwich

BROKEN_PAIRS = Path("broken-certificates")
"""Where pairs go that contradict a certificate, unless --explain names a folder."""


@dataclass(frozen=True)
class AttackRequest:
    """What was asked for.

    Attributes:
        images: how many to attack; None for all.
        seed: of random starts.
        auto_attack: whether AutoAttack runs, too.
        folder: for pictures and the table of images; None for none.
        shown: ends of the paths of the images to draw; the most telling ones where empty.
    """

    images: int | None
    seed: int
    auto_attack: bool
    folder: Path | None
    shown: tuple[str, ...]


def attack_request(
    attack: bool,
    images: int | None,
    seed: int,
    auto_attack: bool,
    folder: Path | None,
    shown: Sequence[str] | None,
) -> AttackRequest | None:
    """The request of these options, checked before any work; None if no attack is asked for.

    Raises:
        UsageError: if an option does not fit.
        OutputError: if matplotlib is missing where pictures are asked for, or the folder cannot be
            written.
        EngineError: if torch is missing.
    """
    if not attack and not auto_attack and folder is None:
        if images is not None or shown:
            option = "--attack-images" if images is not None else "--explain-image"
            raise UsageError(f"{option} needs --attack or --explain DIR")
        return None
    if images is not None and images < 1:
        raise UsageError(f"--attack-images {images}: must be at least 1")
    if shown and folder is None:
        raise UsageError("--explain-image needs --explain DIR, the folder for the pictures")
    from lipdeploy.attacks import check_torch

    check_torch()
    if auto_attack:
        from lipdeploy.attacks.auto_attack import check_auto_attack

        check_auto_attack()
    if folder is not None:
        from lipdeploy.plots import check_matplotlib

        check_matplotlib("--explain")
        make_writable_folder(folder)
    return AttackRequest(images, seed, auto_attack, folder, tuple(shown or ()))


def run_attack(
    model: Path,
    predictor: "Predictor",
    images: "LabelledSources[Any]",
    radii: Sequence[Fraction],
    settings: dict[str, Any],
    request: AttackRequest,
) -> dict[str, Any]:
    """Attack, say what broke, write what was asked for; gives the summary.

    Args:
        model: the file that was given: an engine, or a trained model.
        predictor: whose answers are attacked.
        images: labels in the order of its classes.
        radii: those asked for, l2 in [0, 1] pixels.
        settings: arguments of the predictor.
        request: what was asked for.
    """
    from lipdeploy.attacks.attacker import Attacker, AttackOptions, attacked
    from lipdeploy.report import attack as report
    from lipdeploy.report.broken import BrokenPairs
    from lipdeploy.sandwich import Gallery, Sandwich

    options = AttackOptions(tuple(radii), seed=request.seed, auto_attack=request.auto_attack)
    attacker = Attacker(predictor, options, settings["device"])
    images = images if request.images is None else images.spread(request.images)
    sandwich, gallery = Sandwich(), Gallery(request.shown)
    rows: list[dict[str, Any]] = []
    again = partial(check_pair_command, model, predictor.guarantee, settings)
    evidence = BrokenPairs(request.folder or BROKEN_PAIRS, predictor, again)
    start = time.perf_counter()
    for item in report.watched_attack(attacked(attacker, predictor, images), len(images)):
        sandwich.add(item)
        gallery.add(item)
        rows.append(report.attack_row(item, predictor.manifest.classes))
        if pair := report.broken_pair(item, predictor.manifest.classes):
            evidence.tell(pair)
    seconds = time.perf_counter() - start
    if request.folder is not None:
        report.write_attack_table(rows, request.folder / "attack.csv")
        title = f"{predictor.model} on {sandwich.images} images of {images.name}"
        _draw(request.folder, sandwich, gallery, radii, title, predictor.manifest.classes)
    guarantee, pairs = predictor.guarantee, evidence.records
    return report.sandwich_summary(sandwich, radii, guarantee, _tried(options), pairs, seconds)


def _tried(options: "AttackOptions") -> dict[str, Any]:
    """How much was tried, in plain values."""
    return {
        "attacks": list(options.attacks),
        "minimal_steps": options.minimal_steps,
        "ball_steps": options.ball_steps,
        "restarts": options.restarts,
        "seed": options.seed,
    }


def check_pair_command(
    model: Path, guarantee: str, settings: dict[str, Any], first: Path, second: Path
) -> str:
    """What to type to compare a pair again as it was evaluated.

    Args:
        model: path of the engine, or of a trained model, which has to be exported first.
        guarantee: the statement that was contradicted.
        settings: arguments of the predictor.
        first: file of the certified input.
        second: file of the other one.
    """
    engine, start = model, ""
    if holds_tensors(model):
        engine = model.with_suffix(".onnx")
        start = shlex.join(["lipdeploy", "export", str(model), "--output", str(engine)]) + " && "
    arguments = [str(first), str(second), "--model", str(engine), "--guarantee", guarantee]
    arguments += ["--runtime", settings["runtime"], "--device", settings["device"]]
    arguments += ["--tight"] if settings["tight"] else []
    return start + shlex.join(["lipdeploy", "check-pair", *arguments])


def _draw(
    folder: Path,
    sandwich: "Sandwich",
    gallery: "Gallery",
    radii: Sequence[Fraction],
    title: str,
    classes: Sequence[str],
) -> None:
    """Write the curves, and one picture for each chosen image."""
    from lipdeploy import attack_plots

    attack_plots.write_sandwich_curve(sandwich, radii, title, folder / "sandwich.png")
    chosen = gallery.chosen()
    for number, (reason, item) in enumerate(chosen, start=1):
        path = folder / f"{number:02d}-{reason.replace(' ', '-')}.png"
        attack_plots.write_look(item, reason, classes, path)
    print_note(f"wrote sandwich.png, attack.csv and {len(chosen)} images to {folder}")
