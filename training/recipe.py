"""Recipes: networks and training options under a name, in files of TOML.

Those that come with lipdeploy lie in the folder `recipes`. The keys of [network] are the fields of
`Architecture`, those of [training] the options of the command line without their dashes.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from lipdeploy.choices import suggestion
from lipdeploy.errors import LipdeployError, UsageError
from lipdeploy.training.architecture import Architecture
from lipdeploy.training.options import TrainingOptions, flag

Made = TypeVar("Made")

SUFFIX = ".toml"
LARGEST_FILE = 1 << 16
"""Bytes; a recipe is a few lines."""


def _keys(kind: Any, *, without: set[str]) -> dict[str, str]:  # noqa: ANN401
    """Keys of a table by the field that each sets."""
    return {flag(f.name).removeprefix("--"): f.name for f in fields(kind) if f.name not in without}


NETWORK_KEYS = _keys(Architecture, without={"image_size", "classes"})
TRAINING_KEYS = _keys(TrainingOptions, without={"device", "recipe"})
TABLES = ("purpose", "network", "training", "reached")


@dataclass(frozen=True)
class Reached:
    """What a recipe reached once, as a printed result in the repository says.

    Attributes:
        on: what it was measured on, and under which statement.
        clean: clean accuracy, %.
        certified_36: right and certified at 36/255, %.
        certified_72: likewise at 72/255.
        certified_108: likewise at 108/255.
        time: how long the training took, and on what.
        printed_in: file with the output of the command that measured it.

    Raises:
        ValueError: if a value is of another type, or no share.
    """

    on: str
    clean: float
    certified_36: float
    certified_72: float
    certified_108: float
    time: str
    printed_in: str

    def __post_init__(self) -> None:
        for name in ("on", "time", "printed_in"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name.replace('_', '-')}: must be text")
        shares: list[Any] = [self.certified_108, self.certified_72, self.certified_36, self.clean]
        if not all(type(share) in (int, float) and 0 <= share <= 100 for share in shares):
            raise ValueError("accuracies must be numbers in [0, 100]")
        if shares != sorted(shares):
            raise ValueError("a larger radius cannot have more images")


REACHED_KEYS = _keys(Reached, without=set())


@dataclass(frozen=True)
class Recipe:
    """A network and how to train it.

    Attributes:
        name: of the file, without its suffix.
        purpose: what it is for.
        network: fields of `Architecture`.
        training: fields of `TrainingOptions`.
        reached: what it reached; None where no printed result says so.
    """

    name: str
    purpose: str
    network: dict[str, Any]
    training: dict[str, Any]
    reached: Reached | None

    @property
    def architecture(self) -> Architecture:
        """Its network, for images of CIFAR-10."""
        return Architecture(image_size=32, classes=10, **self.network)


def load_recipe(name: str) -> Recipe:
    """The recipe called `name`, or the one in the file `name`.

    Raises:
        UsageError: if there is none, or it is wrong; names the file and the key.
    """
    if name in recipe_names():
        return _read(_folder() / f"{name}{SUFFIX}", f"{name}{SUFFIX}")
    path = Path(name)
    if path.is_file():
        return _read(path, name)
    names = recipe_names()
    near = "" if name.endswith(SUFFIX) else suggestion(name, names)
    raise UsageError(
        f"--recipe {name}: neither a file nor one of {', '.join(names)}{near}; see "
        "'lipdeploy train --list-recipes'"
    )


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with lipdeploy."""
    files = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(SUFFIX) for name in files if name.endswith(SUFFIX)))


def _folder() -> Traversable:
    return resources.files("lipdeploy.training") / "recipes"


def _read(source: Path | Traversable, shown: str) -> Recipe:
    name = Path(shown).name.removesuffix(SUFFIX)
    try:
        with source.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise ValueError(f"more than {LARGEST_FILE} bytes")
        content = tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{shown}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{shown}: no recipe, which is a file of TOML ({reason})") from error
    return parse_recipe(content, name, shown)


def parse_recipe(content: Mapping[str, Any], name: str, shown: str) -> Recipe:
    """The recipe in the content of a file.

    Args:
        content: what TOML makes of the file.
        name: of the recipe.
        shown: the file, for messages.

    Raises:
        UsageError: if a key is unknown, missing or of another type, or a value not allowed.
    """
    _check_keys(content, TABLES, shown, "")
    purpose = content.get("purpose")
    if not isinstance(purpose, str) or not purpose:
        raise UsageError(f"{shown}: purpose: must be text that says what the recipe is for")
    recipe = Recipe(
        name=name,
        purpose=purpose,
        network=_table(content, "network", NETWORK_KEYS, shown),
        training=_table(content, "training", TRAINING_KEYS, shown),
        reached=_reached(content, shown),
    )
    _check_kinds(recipe.network, shown)
    _checked(lambda: recipe.architecture, shown)
    _checked(lambda: TrainingOptions(**recipe.training), shown)
    return recipe


def _check_keys(found: Mapping[str, Any], allowed: Any, shown: str, where: str) -> None:  # noqa: ANN401
    for key in found:
        if key not in allowed:
            raise UsageError(
                f"{shown}: unknown key {key!r:.50}{where}; expected some of {', '.join(allowed)}"
                f"{suggestion(key, allowed)}"
            )


def _table(
    content: Mapping[str, Any], name: str, keys: dict[str, str], shown: str
) -> dict[str, Any]:
    """The values of a table by field."""
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{shown}: {name}: must be a table, [{name}]")
    _check_keys(table, keys, shown, f" in [{name}]")
    return {keys[key]: value for key, value in table.items()}


def _check_kinds(network: dict[str, Any], shown: str) -> None:
    """Raise UsageError unless every value of [network] is of the type of its default."""
    for field in fields(Architecture):
        value = network.get(field.name, field.default)
        if type(value) is not type(field.default):
            kind = "text" if isinstance(field.default, str) else "a whole number"
            raise UsageError(f"{shown}: {field.name} {value!r:.50}: must be {kind}")


def _reached(content: Mapping[str, Any], shown: str) -> Reached | None:
    values = _table(content, "reached", REACHED_KEYS, shown)
    if "reached" not in content:
        return None
    missing = [key for key, field in REACHED_KEYS.items() if field not in values]
    if missing:
        raise UsageError(f"{shown}: [reached] lacks {', '.join(missing)}")
    return _checked(lambda: Reached(**values), shown)


def _checked(make: Callable[[], Made], shown: str) -> Made:
    """What `make` returns, the file in front of the message of an error."""
    try:
        return make()
    except (LipdeployError, ValueError, TypeError) as error:
        raise UsageError(f"{shown}: {error}") from error
