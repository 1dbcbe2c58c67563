"""The certificates of a batch of answers: which statements, and what each radius rests on."""

import numpy as np

from lipdeploy.arithmetic import ARITHMETICS
from lipdeploy.artifact import REFERENCE, Engine
from lipdeploy.certificate import (
    Answers,
    Certifier,
    Guarantee,
    assumptions,
    file_radius,
    integer_budget,
    scale_radius,
)
from lipdeploy.errors import UsageError
from lipdeploy.images import NetworkInput
from lipdeploy.mlp_head import MlpHead
from lipdeploy.prediction import Certificate
from lipdeploy.runtimes import Array, Runtime
from lipdeploy.runtimes.numpy import NumpyRuntime
from lipdeploy.runtimes.onnx import OnnxRuntime

NOT_CERTIFIED = "the class does not lead all others by more than the numerical error"
NO_ORDER = (
    "here the engine adds in different orders for a batch of {}, other than its bounds assume; use "
    "--guarantee network, or export with --accumulation blocked"
)


class BatchCertifier:
    """Certifies what an engine returned.

    Args:
        engine: what runs.
        runtime: what runs it.
        guarantee: which statement; None for "program" where there are bounds for the runtime, else
            "network".
        tight: take longer to prove larger radii, where the head has a way.
        compare: compute every statement that the engine has bounds for, too.

    Attributes:
        guarantee: the statement that was asked for.

    Raises:
        UsageError: if the engine has no bounds for the statement.
    """

    def __init__(
        self,
        engine: Engine,
        runtime: Runtime,
        guarantee: Guarantee | None,
        *,
        tight: bool,
        compare: bool,
    ) -> None:
        self._engine, self._arithmetic, self._compare = engine, runtime.arithmetic, compare
        self._certifier = Certifier(engine.network, engine.manifest, tight)
        self._errors = engine.manifest.errors
        self._order_kept = dict[int, bool]()
        is_ordered = engine.manifest.accumulation == "same-order"
        self._has_program = (
            runtime.runs_graph
            # Only there the order of sums can be tested.
            and (not is_ordered or isinstance(runtime, OnnxRuntime | NumpyRuntime))
            and ARITHMETICS[runtime.arithmetic].has_program
            and self.rounding in self._errors
        )
        self.guarantee: Guarantee = guarantee or ("program" if self._has_program else "network")
        if self.guarantee == "program" and not self._has_program:
            raise UsageError(
                f"--guarantee program: there are no bounds for {runtime.description}; use "
                "--guarantee network, or --runtime onnxruntime"
            )

    @property
    def _is_mlp(self) -> bool:
        return isinstance(self._engine.network.head, MlpHead)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the certificates assume."""
        return self.assumptions_of(self.guarantee)

    def assumptions_of(self, statement: str) -> tuple[str, ...]:
        """What one of `statements` assumes."""
        guarantee, _, rounding = statement.partition(", ")
        return assumptions(guarantee, rounding or self.rounding, is_mlp=self._is_mlp)

    @property
    def tight_is_exact(self) -> bool:
        """Whether tight certificates were asked for where there is nothing to gain."""
        return self._certifier.tight and not self._is_mlp

    @property
    def rounding(self) -> str:
        """Name of the error bounds of the runtime: arithmetic and order of sums."""
        if self._arithmetic == REFERENCE.arithmetic.name:
            return REFERENCE.name
        return f"{self._arithmetic} {self._engine.manifest.accumulation}"

    @property
    def statements(self) -> tuple[str, ...]:
        """Names of what is computed for each image; the one that was asked for is first."""
        if not self._compare:
            return (self.guarantee,)
        others = [
            f"program, {name}"
            for name in self._errors
            if name.startswith(f"{self._arithmetic} ") and name != self.rounding
        ]
        programs = ["program", *others] if self._has_program else []
        return tuple(dict.fromkeys([self.guarantee, "network", *programs]))

    def certificates(
        self, answers: Answers, inputs: list[NetworkInput], runtime: Runtime
    ) -> list[Certificate]:
        """A certificate for each image of a batch.

        Args:
            answers: what the runtime returned.
            inputs: what it got.
            runtime: can be asked for the order of its sums.
        """
        radii = self._all_radii(answers, runtime)
        return [
            self._certificate({name: radii[name][index] for name in radii}, item, len(inputs))
            for index, item in enumerate(inputs)
        ]

    def _all_radii(self, answers: Answers, runtime: Runtime) -> dict[str, list[float]]:
        """Radii of every statement, in units of the pixels."""
        radii: dict[str, list[float]] = {}
        for name in self.statements:
            # No certified flip is a consequence of *network*, at the same radius.
            proven = "network" if name == "no-certified-flip" else name
            if proven not in radii:
                radii[proven] = self._radii(proven, answers, runtime).tolist()
            radii[name] = radii[proven]
        return radii

    def _radii(self, statement: str, answers: Answers, runtime: Runtime) -> Array:
        if not statement.startswith("program"):
            return self._certifier.network_radii(answers)
        rounding = statement.removeprefix("program, ")
        rounding = self.rounding if rounding == "program" else rounding
        batch = len(answers.labels)
        if rounding.endswith("same-order") and not self._keeps_order(runtime, batch):
            return np.zeros(batch)
        return self._certifier.program_radii(answers, self._errors[rounding])

    def _keeps_order(self, runtime: Runtime, batch: int) -> bool:
        """Whether the permutation test passes on this machine at this batch size."""
        if batch not in self._order_kept:
            from lipdeploy.exporters.onnx_probe import keeps_order

            self._order_kept[batch] = isinstance(runtime, OnnxRuntime) and keeps_order(
                runtime, self._engine.prepared, batch
            )
        return self._order_kept[batch]

    def _certificate(
        self, radii_255: dict[str, float], item: NetworkInput, batch: int
    ) -> Certificate:
        radius_255, on_file = radii_255[self.guarantee], None
        if item.resize_norm_upper is not None:
            on_file = file_radius(radius_255, item.error_upper, item.resize_norm_upper)
            on_file = scale_radius(on_file, 255)
        return Certificate(
            radius=scale_radius(radius_255, 255),
            radius_255=radius_255,
            radius_file=on_file,
            integer_budget=None if on_file is None else integer_budget(on_file),
            guarantee=self.guarantee,
            assumptions=self.assumptions,
            reason=None if radius_255 > 0 else self._reason(batch),
            radii_255=radii_255,
        )

    def _reason(self, batch: int) -> str:
        """Why a radius is 0."""
        if self.guarantee == "program" and not self._order_kept.get(batch, True):
            return NO_ORDER.format(batch)
        return NOT_CERTIFIED
