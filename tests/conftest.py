"""Fixtures that several tests use."""

import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ignore, make_network, own_test_set, save_model_file, write_image_folder
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from lipdeploy.artifact import Engine
from lipdeploy.frozen import FrozenNetwork
from lipdeploy.training.data import Dataset, load_folder
from lipdeploy.training.lipconvnet import LipConvNet

SOURCE = Path(os.environ.get("LIPDEPLOY_SOURCE", Path(__file__).parents[1]))

# On networks as small as these several threads wait for each other longer than they compute.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

# Shells let what runs in the background ignore Ctrl-C. Tests of Ctrl-C are not to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines differ in speed; CI repeats the same examples, people get new ones.
hypothesis_settings.register_profile(
    "lipdeploy",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
hypothesis_settings.load_profile("lipdeploy")


@pytest.fixture(scope="session")
def source() -> Path:
    """The checkout."""
    return SOURCE


@pytest.fixture(scope="session")
def sample_images() -> list[Path]:
    """The bundled images."""
    return sorted((SOURCE / "samples").glob("*.jpg"))


@pytest.fixture(scope="session")
def frozen_network() -> FrozenNetwork:
    """A small frozen network in float32."""
    from lipdeploy.exporters.freeze import freeze

    return freeze(make_network()).stored_as("float32")


@pytest.fixture(scope="session")
def bundled() -> LipConvNet:
    """The network of samples/model.pt."""
    from lipdeploy.training.checkpoint import load_model

    return load_model(SOURCE / "samples" / "model.pt").network


@pytest.fixture(scope="session")
def small_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network with the classes of the bundled images, as an engine."""
    from lipdeploy.exporters.export import ExportOptions, export_model
    from lipdeploy.training.checkpoint import ModelCard, TrainedModel, save_model

    classes = tuple(sorted({path.stem[:-5] for path in (SOURCE / "samples").glob("*.jpg")}))
    folder = tmp_path_factory.mktemp("small")
    card = ModelCard(classes, "none", "not trained", 0)
    network = make_network(classes=len(classes))
    save_model(TrainedModel(network, card, torch.zeros(2, 3, 8, 8)), folder / "model.pt")
    export_model(folder / "model.pt", folder / "model.onnx", ExportOptions())
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model.pt and the engine made of it."""
    from lipdeploy.exporters.export import ExportOptions, export_model
    from lipdeploy.training.checkpoint import ModelCard, TrainedModel, save_model

    folder = tmp_path_factory.mktemp("workshop")
    card = ModelCard(("ant", "bee", "cow"), "tiny", "lipdeploy train tiny", 1)
    save_model(TrainedModel(make_network(), card, torch.zeros(2, 3, 8, 8)), folder / "model.pt")
    export_model(folder / "model.pt", folder / "model.onnx", ExportOptions())
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of three classes."""
    return save_model_file(tmp_path_factory.mktemp("model"), width=8)


@pytest.fixture(scope="session")
def built(model: Path) -> Path:
    """OpenVINO's engine of it, with its family."""
    from lipdeploy.exporters.export import ExportOptions, export_model

    path = model.with_name("model.xml")
    export_model(model, path, ExportOptions(engine="openvino"))
    return path


@pytest.fixture(scope="session")
def engine(model: Path) -> Engine:
    """Its ONNX engine, in memory."""
    from lipdeploy.exporters.options import ExportOptions
    from lipdeploy.exporters.trained import build_engine

    return build_engine(model, ExportOptions())


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A dataset of two classes, dark and bright, 12 images of 8 x 8 pixels each."""
    return write_image_folder(tmp_path / "tiny", side=8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for decoded datasets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(image_folder: Path, cache: Path) -> Dataset:
    """The training part of `image_folder`."""
    return load_folder(image_folder, None, 1, ignore)


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images as test/<class>/*: 500 of cifar10-jpeg if it lies beside the checkout."""
    folder = tmp_path_factory.mktemp("test-set")
    archive = SOURCE.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        return own_test_set(folder, SOURCE / "samples")
    with tarfile.open(archive) as stored:
        for index, member in enumerate(m for m in stored if "/test/" in m.name and m.isfile()):
            if index % 16 == 0:
                # Python before 3.11.4 has no filters of tarfile to extract with.
                content = stored.extractfile(member)
                assert content is not None
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    return folder / "cifar10-jpeg"


@pytest.fixture
def run_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; gives exit status, output and errors."""
    from lipdeploy import cli

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lipdeploy", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
