"""What goes wrong, as a person meets it: one row each of input, message and exit status.

Every row runs a command. What is wrong is said in one line that names what came and what to do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import assert_one_line, own_test_set, write_image_folder

Cli = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Scene:
    """What the rows below work on."""

    folder: Path
    images: Path
    workshop: Path
    samples: Path

    def without(self, part: str, name: str) -> Path:
        """The dataset with the images of a class removed."""
        for path in (self.images / part / name).iterdir():
            path.unlink()
        return self.images

    def moved(self, part: str, name: str, other: str) -> Path:
        """The dataset with a class renamed; removed, where `other` is empty."""
        (self.images / part / name).rename(
            self.images / part / other if other else self.folder / name
        )
        return self.images

    def broken(self, part: str, name: str) -> Path:
        """The dataset with a text file among the images."""
        (self.images / part / name / "00.png").write_text("text")
        return self.images

    def file(self, name: str = "file") -> Path:
        """A file where a folder is needed, or none should be."""
        (self.folder / name).write_text("")
        return self.folder / name

    def empty(self) -> Path:
        """A folder with nothing in it."""
        (self.folder / "empty").mkdir()
        return self.folder / "empty"

    def newest(self) -> list[str]:
        """Nothing to type: a damaged engine that is the newest below ./runs."""
        (self.folder / "runs").mkdir()
        (self.folder / "runs" / "model.onnx").write_text("text")
        return []

    def copied(self, name: str) -> Path:
        """A file of the workshop that may be damaged."""
        (self.folder / name).write_bytes((self.workshop / name).read_bytes())
        return self.folder / name

    def cut(self, name: str) -> Path:
        """A file of the workshop without its end."""
        (self.folder / name).write_bytes((self.workshop / name).read_bytes()[:-500])
        return self.folder / name


COMMANDS: list[tuple[str, Callable[[Scene], list[object]], int, str]] = [
    (
        "dataset: mistyped",
        lambda s: ["train", "cifar01"],
        1,
        "cifar01: no such file or folder; expected a folder, or one of .*; did you mean cifar10",
    ),
    (
        "dataset: missing folder",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.folder / "none"],
        1,
        "none: no such file or folder; expected a folder, a .csv list, .parquet or .tar files,",
    ),
    *(
        (
            f"dataset: {name}",
            lambda s, name=name: ["evaluate", s.workshop / "model.onnx", s.file(name)],
            1,
            f"{name}: {message}",
        )
        for name, message in {
            "a.png": "an image; to classify it type 'lipdeploy predict .*a.png'",
            "a.onnx": "a model; the test set comes last, as in 'lipdeploy evaluate MODEL TESTSET'",
            "a.zip": "an archive; unpack it and give the folder",
            "a.tsv": "a table of another kind; save it as a .csv file with the columns path,label",
            "a.xyz": "a file of another kind; expected a folder, a .csv list, ",
        }.items()
    ),
    *(
        (
            f"dataset: {name}",
            lambda s, place=place: ["evaluate", s.workshop / "model.onnx", place(s)],
            1,
            f"expected folders test/<class>/\\* with images, found {message}",
        )
        for name, place, message in [
            (
                "class folders without a part",
                lambda s: (s.images / "train").rename(s.folder / "mine"),
                "class folders, such as bright; move them into .*mine/test$",
            ),
            ("a part", lambda s: s.images / "test", "a part of such a dataset; give .*tiny$"),
            (
                "a class",
                lambda s: s.images / "test" / "dark",
                "a part of such a dataset; give .*tiny$",
            ),
            ("an empty folder", lambda s: s.empty(), "an empty folder$"),
        ]
    ),
    (
        "dataset: no train folder",
        lambda s: ["train", s.samples],
        1,
        r"expected folders train/<class>/\* with images",
    ),
    (
        "dataset: no test folder",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.samples],
        1,
        r"expected folders test/<class>/\* with images",
    ),
    (
        "dataset: one class",
        lambda s: ["train", s.moved("train", "dark", "")],
        1,
        "found only the class folder 'bright', expected at least 2; make one folder",
    ),
    (
        "dataset: empty class",
        lambda s: ["train", s.without("train", "dark")],
        1,
        "dark: a class without images; add some or remove it",
    ),
    (
        "dataset: class in train and not in test",
        lambda s: ["train", s.moved("test", "dark", "")],
        1,
        "test: no images of dark, which .*train has; .*add a folder",
    ),
    (
        "dataset: class spelled otherwise in test",
        lambda s: ["train", s.moved("test", "dark", "dakr")],
        1,
        "train has no class 'dakr'; did you mean dark",
    ),
    (
        "dataset: other classes than the model",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images],
        1,
        "the model has no class 'bright'; it knows ant, bee, cow",
    ),
    (
        "dataset: an image that cannot be read",
        lambda s: [(s.images / "train" / "dark" / "00.png").write_text("text"), "train", s.images][
            1:
        ],
        1,
        r"00\.png: not a readable image",
    ),
    (
        "size: too small to train",
        lambda s: ["train", s.images, "--image-size", "3"],
        2,
        "--image-size 3: must be at least 4",
    ),
    (
        "size: another than CIFAR's",
        lambda s: ["train", "cifar10", "--image-size", "64"],
        2,
        "leave out --image-size",
    ),
    (
        "output: a run below a file",
        lambda s: ["train", s.images, "--out", s.file() / "run"],
        1,
        "cannot be written .*give another place",
    ),
    (
        "output: an engine below a file",
        lambda s: ["export", s.workshop / "model.pt", "-o", s.file() / "a.onnx"],
        1,
        "cannot be written .*give another place",
    ),
    (
        "output: an engine over a folder",
        lambda s: ["export", s.workshop / "model.pt", "-o", s.images],
        1,
        "is a folder; give the name of a file",
    ),
    (
        "output: an engine over its model",
        lambda s: ["export", s.copied("model.pt"), "-o", s.folder / "model.pt"],
        2,
        "model.pt: is the model itself; give another name",
    ),
    (
        "output: a run over somebody's table",
        lambda s: ["train", s.images, "--out", s.file("metrics.csv").parent],
        2,
        "already holds metrics.csv.*choose another --out",
    ),
    (
        "output: a table on a full disk",
        lambda s: ["evaluate", s.samples / "model.onnx", s.folder / "own", "--csv", "/dev/full"],
        1,
        "/dev/full: cannot be written .No space left on device.*make room",
    ),
    (
        "output: a picture below a file",
        lambda s: [
            "evaluate",
            s.samples / "model.onnx",
            s.folder / "own",
            "--curve",
            s.file() / "a.png",
        ],
        1,
        "cannot be written .*give another place",
    ),
    (
        "usage: unknown command",
        lambda s: ["evaluat", "x"],
        2,
        "No such command 'evaluat'. Did you mean 'evaluate'.*see 'lipdeploy --help'",
    ),
    (
        "usage: unknown option",
        lambda s: ["export", "m.pt", "--engin", "onnx"],
        2,
        "No such option: --engin .*--engine.*see 'lipdeploy export --help'",
    ),
    (
        "usage: unknown engine",
        lambda s: ["export", s.workshop / "model.pt", "--engine", "onxx"],
        2,
        "--engine onxx: expected one of onnx, .*; did you mean onnx",
    ),
    (
        "usage: unknown head",
        lambda s: ["train", s.images, "--head", "mpl"],
        2,
        "--head mpl: expected one of linear, lln, mlp; did you mean mlp",
    ),
    (
        "usage: unknown device",
        lambda s: ["predict", s.samples, "--device", "cdua", "--model", s.workshop / "model.onnx"],
        2,
        "--device cdua: expected one of auto, cpu, cuda; did you mean cuda",
    ),
    (
        "usage: unknown device to train on",
        lambda s: ["train", s.images, "--device", "gpu"],
        2,
        "--device gpu: expected one of auto, cpu, cuda; did you mean cuda",
    ),
    (
        "train: a device that is not there",
        lambda s: ["train", s.images, "--device", "cuda:99"],
        1,
        r"--device cuda:99: torch \S+ (is a build without CUDA|has no usable GPU .*); use --device "
        "cpu, or (with an NVIDIA GPU pip uninstall -y torch && pip install torch|check nvidia-smi)",
    ),
    (
        "export: a text file",
        lambda s: ["export", s.file("notes.txt")],
        1,
        "notes.txt: not a trained model; give the model.pt .* an ONNX engine .*onnx",
    ),
    (
        "export: a damaged engine",
        lambda s: ["export", s.cut("model.onnx")],
        1,
        "model.onnx: not an engine .an ONNX file., or a damaged one",
    ),
    (
        "export: the folder of a run",
        lambda s: ["export", s.copied("model.pt").parent],
        1,
        r"a folder, not a model; give \S+/model\.pt",
    ),
    (
        "inspect: a folder without a model",
        lambda s: ["inspect", s.images],
        1,
        "tiny: a folder, not a model; give a file, such as model.onnx",
    ),
    (
        "verify: the folder of a run",
        lambda s: ["verify", s.copied("model.onnx").parent],
        1,
        r"a folder, not a model; give \S+/model\.onnx",
    ),
    (
        "predict: the folder of a run as the model",
        lambda s: ["predict", s.samples, "--model", s.copied("model.onnx").parent],
        1,
        r"a folder, not a model; give \S+/model\.onnx",
    ),
    (
        "predict: an engine that nobody has named",
        lambda s: ["predict", "--quiet", s.samples, *s.newest()],
        1,
        "runs/model.onnx: not an engine .*make one with .*, or give another engine with --model",
    ),
    (
        "predict: a runtime that is none, before a model is chosen",
        lambda s: ["predict", s.samples, "--runtime", "onxx"],
        2,
        "--runtime onxx: expected one of auto, onnxruntime",
    ),
    (
        "predict: a runtime by the engine's name",
        lambda s: ["predict", s.samples, "--model", s.workshop / "model.onnx", "--runtime", "trt"],
        2,
        "--runtime tensorrt: .*model.onnx is no TensorRT engine; make one with",
    ),
    (
        "export: an engine by the runtime's name",
        lambda s: ["export", s.workshop / "model.onnx", "--engine", "onnxruntime"],
        1,
        "an engine already",
    ),
    (
        "check-pair: an engine that nobody has named",
        lambda s: ["check-pair", "--quiet", "a.png", "b.png", *s.newest()],
        1,
        "runs/model.onnx: not an engine .*make one with .*, or give another engine with --model",
    ),
    ("usage: no image", lambda s: ["predict"], 2, "Missing argument 'images'.*predict --help"),
    (
        "usage: no number",
        lambda s: ["train", s.images, "--epochs", "many"],
        2,
        "Invalid value for '--epochs'.*valid integer.*train --help",
    ),
    (
        "usage: workers below none",
        lambda s: ["train", s.images, "--workers", "-1"],
        2,
        "--workers -1: must be 0 .one a core. or more",
    ),
    (
        "usage: no radius",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images, "--radii", "36/255,much"],
        2,
        "--radii much: expected a number or a fraction, as 36/255",
    ),
    ("usage: nothing to measure", lambda s: ["benchmark"], 2, "Missing argument.*benchmark --help"),
    (
        "usage: batches of nothing",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--batch", "8,0"],
        2,
        "--batch 8,0: must be at least 1",
    ),
    (
        "usage: no batch",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--batch", "1;8"],
        2,
        "--batch 1;8: expected whole numbers, separated by commas, as 1,8,64",
    ),
    (
        "usage: no time to measure",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--seconds", "nan"],
        2,
        "--seconds nan: must be more than 0",
    ),
    (
        "usage: a limit of no images",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--limit", "5"],
        2,
        "--limit says how to compare answers; add --data, or leave it out",
    ),
    (
        "benchmark: one of the files is missing",
        lambda s: ["benchmark", s.workshop / "model.onnx", "gone.onnx", "--seconds", "0.01"],
        1,
        "gone.onnx: no such file; expected an engine",
    ),
    (
        "benchmark: a picture",
        lambda s: ["benchmark", s.samples / "cat-0000.jpg"],
        1,
        "cat-0000.jpg: not an engine .an ONNX file., or a damaged one",
    ),
    (
        "benchmark: other classes than the images",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--data", s.images],
        1,
        "the model has no class 'bright'; it knows ant, bee, cow",
    ),
    (
        "benchmark: no dataset",
        lambda s: ["benchmark", s.workshop / "model.onnx", "--data", "cifar"],
        1,
        "tar files, or one of cifar10, cifar100; did you mean cifar10",
    ),
    (
        "usage: no corruption of that name",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images, "--corruption", "gausian_blur"],
        2,
        "--corruption gausian_blur: expected one of .*did you mean gaussian_blur",
    ),
    (
        "usage: no severity",
        lambda s: [
            *["evaluate", s.workshop / "model.onnx", s.images],
            *["--corruptions", "--severity", "1,6"],
        ],
        2,
        "--severity 6: expected one of 1, 2, 3, 4, 5",
    ),
    (
        "usage: a range of severities",
        lambda s: [
            *["evaluate", s.workshop / "model.onnx", s.images],
            *["--corruptions", "--severity", "1-5"],
        ],
        2,
        "--severity 1-5: expected numbers between commas, as 1,2,3,4,5",
    ),
    (
        "usage: a short name of a corruption",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images, "--corruption", "jpeg"],
        2,
        "--corruption jpeg: expected one of .*did you mean jpeg_compression",
    ),
    (
        "usage: corruptions with a name, taken for the test set",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images, "--corruptions", "contrast"],
        2,
        "contrast: a corruption, not a file; .*did you mean --corruption contrast",
    ),
    (
        "usage: corruptions with a name, taken for a model",
        lambda s: ["evaluate", s.workshop / "model.onnx", "--corruptions", "contrast", s.images],
        2,
        "contrast: a corruption, not a file; .*did you mean --corruption contrast",
    ),
    (
        "usage: the test set before the model",
        lambda s: ["evaluate", s.images, s.workshop / "model.onnx"],
        2,
        "tiny: a test set, not a model; the test set comes last",
    ),
    (
        "usage: a list before the model",
        lambda s: ["evaluate", s.file("list.csv"), s.workshop / "model.onnx"],
        2,
        "list.csv: a test set, not a model; the test set comes last",
    ),
    (
        "evaluate: the folder of a run",
        lambda s: ["evaluate", s.copied("model.pt").parent, s.images],
        1,
        r"a folder, not a model; give \S+/model\.pt",
    ),
    (
        "usage: severities of nothing",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images, "--severity", "1"],
        2,
        "--severity needs --corruptions, or --corruption NAME",
    ),
    (
        "usage: no limit",
        lambda s: ["evaluate", s.workshop / "model.onnx", s.images, "--limit", "0"],
        2,
        "--limit 0: must be at least 1",
    ),
]


@pytest.mark.parametrize(
    ("name", "arguments", "status", "message"), COMMANDS, ids=[row[0] for row in COMMANDS]
)
@pytest.mark.usefixtures("cache")
def test_commands_that_are_refused(
    run_cli: Cli,
    source: Path,
    workshop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: Callable[[Scene], list[object]],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    samples = source / "samples"
    own_test_set(tmp_path / "own", samples)
    images = write_image_folder(tmp_path / "tiny", side=8, count=3)
    scene = Scene(tmp_path, images, workshop, samples)
    command = arguments(scene)
    before = listing(tmp_path)
    found, output, errors = run_cli(*command)
    assert_one_line(found, output, errors.removeprefix("\n"), status, message)
    assert before <= listing(tmp_path), "something was lost"


def listing(folder: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}
