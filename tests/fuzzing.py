"""Damaged and hostile files for every loader; `make fuzz` runs them for minutes.

A loader may accept an input or refuse it with one of lipdeploy's own errors. Anything else is a
failure: another exception, a file opened outside the folder of the input, a process or a connection
started, more than `SLOWEST` seconds, or more than `LARGEST` bytes of memory.
"""

import argparse
import hashlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import shard_files
import torch
from helpers import Silent, make_network, make_trainer
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning
from onnx import helper, numpy_helper
from PIL import Image
from shard_fuzzing import (
    good_parquet_files,
    good_tar_file,
    members,
    read_set,
    tarred,
    with_names,
)

from lipdeploy.artifact import MANIFEST_KEY, Manifest, restore_checked
from lipdeploy.built import BuildRecord, read_built, record_beside
from lipdeploy.errors import LipdeployError
from lipdeploy.exporters.onnx_file import parse_onnx, read_onnx, stored_weights
from lipdeploy.exporters.options import ExportOptions
from lipdeploy.exporters.trained import build_engine
from lipdeploy.images import network_input
from lipdeploy.inspection import inspect_engine
from lipdeploy.predictor import Predictor
from lipdeploy.training.checkpoint import ModelCard, TrainedModel, load_model, save_model
from lipdeploy.training.data import Dataset, LabelledImages
from lipdeploy.training.inspection import inspect_training_file
from lipdeploy.training.run_folder import read_checkpoint

SLOWEST = 10.0
LARGEST = 3 << 30

# Damage to bytes

Damage = list[tuple[str, float, bytes, int]]
KINDS = ("flip", "overwrite", "insert", "delete", "repeat", "cut", "large")

damages: st.SearchStrategy[Damage] = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=6,
)


def damaged(data: bytes, damage: Damage) -> bytes:
    """`data` after some accidents."""
    for kind, where, value, length in damage:
        at = int(where * len(data))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << length % 8)]) + data[at + 1 :]
        elif kind == "overwrite":
            data = data[:at] + value + data[at + len(value) :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + length :]
        elif kind == "repeat":
            data = data[: at + length] + data[at:]
        elif kind == "cut":
            data = data[:at]
        elif kind == "large":
            data = data[:at] + b"\xff\xff\xff\x7f" + data[at + 4 :]
    return data


# Damage to plain values

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, -1, 2, 2**31, 10**9, 10**30])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
Change = tuple[int, str, Any]
changes = st.lists(
    st.tuples(
        st.integers(0, 10**6), st.sampled_from(["replace", "remove", "nudge", "copy"]), plain
    ),
    min_size=1,
    max_size=3,
)


def changed(value: Any, edits: list[Change]) -> Any:
    """Nested dicts and lists after some edits; the input stays as it is."""
    value = json.loads(json.dumps(value))
    for choice, kind, new in edits:
        places = list(_places(value))
        if not places:
            return value
        container, key = places[choice % len(places)]
        old = container[key]
        if kind == "remove":
            del container[key]
        elif kind == "nudge" and isinstance(old, int | float):
            container[key] = old + (-1 if choice % 2 else 1)
        elif kind == "copy":
            other, other_key = places[choice // 7 % len(places)]
            container[key] = json.loads(json.dumps(other[other_key]))
        else:
            container[key] = new
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries: Any = ()
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for key, inner in entries:
        yield value, key
        yield from _places(inner)


# What is damaged


@dataclass(frozen=True)
class Seeds:
    """Good files to begin with, all small."""

    folder: Path
    images: tuple[bytes, ...]
    models: tuple[bytes, ...]
    engines: tuple[bytes, ...]
    checkpoints: tuple[bytes, ...]


def make_seeds(folder: Path) -> Seeds:
    """Images of every format and mode; models and engines of every head, padding and form."""
    models, engines = [], []
    for head in ("lln", "mlp"):
        for padding, size in (("circular", 6), ("zero", 5)):
            path = folder / f"{head}-{padding}.pt"
            network = make_network(image_size=size, head=head, padding=padding)
            card = ModelCard(("ant", "bee", "cow"), "tiny", "lipdeploy train tiny", 1)
            save_model(TrainedModel(network, card, torch.zeros(1, 3, size, size)), path)
            models.append(path.read_bytes())
            forms: list[Any] = ["auto", "taylor" if padding == "zero" else "dense"]
            engines += [build_engine(path, ExportOptions(form=form)).data for form in forms]
    # What libraries read when they are first used is no fault of an input.
    read_model(models[0], folder)
    read_engine(engines[0], folder)
    checkpoint = _checkpoint(folder)
    return Seeds(folder, tuple(_images()), tuple(models), tuple(engines), (checkpoint,))


def _checkpoint(folder: Path) -> bytes:
    labels = torch.arange(8) % 2
    images = LabelledImages(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), labels)
    run = make_trainer(Dataset("tiny", ("ant", "bee"), images), folder / "run", epochs=1)
    run.run(Silent())
    return run.checkpoint_path.read_bytes()


def _images() -> Iterator[bytes]:
    values = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    modes = {"PNG": ["RGB", "L", "P", "RGBA", "LA", "1"], "JPEG": ["RGB", "L", "CMYK"]}
    modes |= {"GIF": ["P"], "WEBP": ["RGB", "RGBA"], "BMP": ["RGB", "P"], "PPM": ["RGB", "L"]}
    modes |= {"TIFF": ["RGB", "CMYK", "LA"]}
    for kind, names in modes.items():
        for mode in names:
            stream = io.BytesIO()
            Image.fromarray(values).convert(mode).save(stream, kind)
            yield stream.getvalue()


def rezipped(data: bytes, record: int, damage: Damage) -> bytes:
    """A model file with one damaged record whose checksum is right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    # Every other time the pickle, where the structure is.
    names = list(records) if record % 2 else [n for n in records if n.endswith("data.pkl")]
    name = names[record % len(names)]
    records[name] = damaged(records[name], damage)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return stream.getvalue()


def rewritten(data: bytes, edits: list[Change]) -> bytes:
    """A model file with other plain values around the same weights."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    weights = {"state", "examples", "network", "optimizer", "scheduler"}
    values = {name: value for name, value in content.items() if name not in weights}
    stream = io.BytesIO()
    torch.save(content | changed(values, edits), stream)
    return stream.getvalue()


def with_manifest(data: bytes, edits: list[Change]) -> bytes:
    """An engine with another manifest, whose hash is right again where it still can be."""
    model = onnx.load_model_from_string(data)
    values = changed(json.loads(model.metadata_props[0].value), edits)
    try:
        manifest = Manifest.from_json(json.dumps(values))
        manifest = replace(manifest, sha256=manifest.digest(stored_weights(model)))
        text = manifest.to_json()
    except (LipdeployError, TypeError, ValueError):
        text = json.dumps(values)
    helper.set_model_props(model, {MANIFEST_KEY: text})
    return bytes(model.SerializeToString())


def with_weights(data: bytes, choice: int, shape: list[int], value: float) -> bytes:
    """An engine with one tensor of another shape and value, whose hash is right again."""
    model = onnx.load_model_from_string(data)
    tensor = model.graph.initializer[choice % len(model.graph.initializer)]
    old = numpy_helper.to_array(tensor)
    with np.errstate(all="ignore"):
        new = np.full(shape if choice % 3 else old.shape, value).astype(old.dtype)
    tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    manifest = Manifest.from_json(model.metadata_props[0].value)
    manifest = replace(manifest, sha256=manifest.digest(stored_weights(model)))
    helper.set_model_props(model, {MANIFEST_KEY: manifest.to_json()})
    return bytes(model.SerializeToString())


EMPTY = hashlib.sha256(b"").hexdigest()


# What reads it


def read_image(data: bytes, folder: Path) -> None:
    """As `predict` reads an image file."""
    path = folder / "image"
    path.write_bytes(data)
    pixels = network_input(path, 8).pixels
    assert pixels.shape == (3, 8, 8)
    assert np.all((pixels >= 0) & (pixels <= 255.01))


def read_model(data: bytes, folder: Path) -> None:
    """As `export` and `inspect` read a model file; one that is accepted must work."""
    path = folder / "model.pt"
    path.write_bytes(data)
    model = load_model(path)
    json.dumps(inspect_training_file(path))
    size = model.network.architecture.image_size
    with torch.no_grad():
        assert model.network(torch.zeros(1, 3, size, size)).shape == (1, len(model.card.classes))


def read_state(data: bytes, folder: Path) -> None:
    """As `train --resume` and `inspect` read a checkpoint; one that is accepted must go on."""
    path = folder / "checkpoint.pt"
    path.write_bytes(data)
    json.dumps(inspect_training_file(path))
    read_checkpoint(folder, lambda note: None)


def read_engine(data: bytes, folder: Path) -> None:
    """As `predict` and `inspect` read an engine; one that is accepted must work."""
    path = folder / "model.onnx"
    path.write_bytes(data)
    json.dumps(inspect_engine(read_onnx(path)))
    with np.errstate(all="ignore"), Predictor(path) as predictor:
        list(predictor.attempt([np.zeros((8, 8, 3), dtype=np.uint8)]))


def read_record(text: str, folder: Path) -> None:
    """The record beside an engine of another library."""
    path = folder / "model.xml"
    path.write_bytes(b"")
    path.with_suffix(".bin").write_bytes(b"")
    record_beside(path).write_text(text)
    read_built(path)


def read_manifest(text: str, folder: Path) -> None:
    """A manifest by itself."""
    restore_checked(Manifest.from_json(text), {})


@dataclass(frozen=True)
class Case:
    """A loader, and what it is given."""

    read: Callable[[Any, Path], None]
    value: Any = field(repr=False)


def cases(seeds: Seeds) -> dict[str, st.SearchStrategy[Case]]:
    """For each loader: itself, and a damaged input."""
    images, models = st.sampled_from(seeds.images), st.sampled_from(seeds.models)
    engines, checkpoints = st.sampled_from(seeds.engines), st.sampled_from(seeds.checkpoints)
    shapes = st.lists(st.integers(0, 6), max_size=4)
    texts = st.builds(json.dumps, plain) | st.text(max_size=30) | st.just("[" * 100_000)
    good = json.loads(parse_onnx(seeds.engines[0], "seed").manifest.to_json())
    texts |= changes.map(lambda edits: json.dumps(changed(good, edits)))
    values = st.floats() | st.sampled_from([0.0, 1e-40, 1e38, np.nan])

    record = BuildRecord("openvino", {".xml": EMPTY, ".bin": EMPTY}, EMPTY, {"a": "1"}, {"b": 2})
    kept = json.loads(record.to_json())
    records = texts | changes.map(lambda edits: json.dumps(changed(kept, edits)))

    few = seeds.images[:5]
    parquets, tar = st.sampled_from(good_parquet_files(few)), good_tar_file(few)
    features = json.loads(shard_files.features(["a", "b"])["huggingface"])
    names = texts | changes.map(lambda edits: json.dumps(changed(features, edits)))

    def case(read: Callable[[Any, Path], None]) -> Callable[[Any], Case]:
        return lambda value: Case(read, value)

    return {
        "image, bytes": st.builds(damaged, images, damages).map(case(read_image)),
        "image, noise": st.binary(max_size=200).map(case(read_image)),
        "model.pt, bytes": st.builds(damaged, models, damages).map(case(read_model)),
        "model.pt, records": st.builds(rezipped, models, st.integers(0, 99), damages).map(
            case(read_model)
        ),
        "model.pt, values": st.builds(rewritten, models, changes).map(case(read_model)),
        "checkpoint, bytes": st.builds(damaged, checkpoints, damages).map(case(read_state)),
        "checkpoint, records": st.builds(rezipped, checkpoints, st.integers(0, 99), damages).map(
            case(read_state)
        ),
        "checkpoint, values": st.builds(rewritten, checkpoints, changes).map(case(read_state)),
        "build record": records.map(case(read_record)),
        "engine, bytes": st.builds(damaged, engines, damages).map(case(read_engine)),
        "engine, manifest": st.builds(with_manifest, engines, changes).map(case(read_engine)),
        "engine, weights": st.builds(
            with_weights, engines, st.integers(0, 999), shapes, values
        ).map(case(read_engine)),
        "manifest": texts.map(case(read_manifest)),
        "parquet, bytes": st.builds(damaged, parquets, damages).map(case(read_set("a.parquet"))),
        "parquet, names": names.map(with_names).map(case(read_set("a.parquet"))),
        "tar, bytes": st.builds(damaged, st.just(tar), damages).map(case(read_set("a.tar"))),
        "tar, members": members.map(tarred).map(case(read_set("a.tar"))),
    }


# How it is watched


class Watch:
    """Runs inputs and notices what a loader must not do."""

    FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = self.accepted = 0
        self.slowest = 0.0
        self._is_watching = False
        allowed = [sys.prefix, sys.base_prefix, *(path for path in sys.path if path), "/dev/null"]
        # The project itself, numpy, and what Python reads to import something late.
        self._allowed = tuple({str(Path(p).resolve()) for p in (*allowed, *_packages())})
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_watching:
            return
        if event in self.FORBIDDEN:
            raise AssertionError(f"{event} {arguments[:1]}")
        if event == "open" and isinstance(arguments[0], str | bytes):
            name = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()
            path = str(Path(name).resolve())
            if not path.startswith((str(self.folder.resolve()), "/proc/", "/sys/", *self._allowed)):
                raise AssertionError(f"opened {path}")

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self._is_watching, start = True, time.perf_counter()
        try:
            yield
        finally:
            self._is_watching = False
            seconds = time.perf_counter() - start
            self.slowest = max(self.slowest, seconds)
        assert seconds < SLOWEST, f"{seconds:.1f} s"

    def run(self, case: Case) -> None:
        """Read one input."""
        self.inputs += 1
        try:
            with self._watching():
                self._read(case)
        except BaseException:
            value, failed = case.value, self.folder.parent / "fuzz-failure"
            failed.write_bytes(value if isinstance(value, bytes) else value.encode())
            print(f"the input is in {failed}", file=sys.stderr)
            raise
        assert peak_memory() < LARGEST, f"{peak_memory() / 2**30:.1f} GiB"

    def _read(self, case: Case) -> None:
        try:
            case.read(case.value, self.folder)
            self.accepted += 1
        except LipdeployError as error:
            message = str(error)
            if not message.strip() or "\n" in message:
                raise AssertionError(f"a message that is not one line: {message!r}") from error


def _packages() -> Iterator[Path]:
    for module in ("lipdeploy", "lipdeploy.training", "lipdeploy.exporters"):
        yield Path(str(sys.modules[module].__file__)).parent


def peak_memory() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def explore(strategy: st.SearchStrategy[Case], watch: Watch, examples: int, number: int) -> None:
    """Run so many inputs."""

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: Case) -> None:
        watch.run(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # of how long an input is in print
        run()


def main() -> None:
    """Fuzz every loader in turn until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-")) / "inputs"
    folder.mkdir()
    targets = cases(make_seeds(folder))
    watch = Watch(folder)
    counts = dict.fromkeys(targets, 0)
    numbers, end = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        for name, strategy in targets.items():
            before = watch.inputs
            explore(strategy, watch, 200, numbers.randrange(2**32))
            counts[name] += watch.inputs - before
    for name, count in counts.items():
        print(f"{name:18s} {count:8d} inputs")
    print(
        f"seed {arguments.seed}, {arguments.minutes:g} minutes: {watch.inputs} inputs, "
        f"{watch.accepted} accepted, {watch.inputs - watch.accepted} refused, 0 crashes; slowest "
        f"{watch.slowest:.2f} s, peak memory {peak_memory() / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    main()
