"""Small charts as inline SVG: they follow the page's colours, light or dark, and need no script.

Each is an image with a name and a description for those who cannot see it; the colours of series
are classes that the page's style sheet defines, and lines differ in their dashes, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lipdeploy.report.console import visible

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 14, 46
MAX_TICKS = 6
LEGEND_LINE = 18

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        label: what it counts.
        end: its largest value; it begins at 0.
    """

    label: str
    end: float

    def ticks(self) -> list[float]:
        """At most `MAX_TICKS` + 1 round values from 0 on."""
        step = 10.0**-9
        factors = (2.0, 2.5, 2.0)
        for turn in range(100):
            if self.end / step <= MAX_TICKS:
                break
            step *= factors[turn % 3]
        return [step * index for index in range(int(self.end / step * (1 + 1e-9)) + 1)]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        points: x and y in the axes' units.
        is_step: whether y keeps its value up to the next x.
        marks: points that get a dot.
    """

    points: Points
    is_step: bool = True
    marks: Points = ()


@dataclass(frozen=True)
class Chart:
    """What all charts have.

    Attributes:
        key: begins the ids of its parts; no other chart of the page has it.
        title: what it shows, in a few words.
        description: what one would say to somebody who cannot see it.
        x: horizontal axis.
        y: vertical axis.
        names: of what is drawn; several stand in a legend above it.
    """

    key: str
    title: str
    description: str
    x: Axis
    y: Axis
    names: Sequence[str] = ()

    def lines(self, lines: Sequence[Line]) -> str:
        """Lines over each other."""
        parts = []
        for number, line in enumerate(lines):
            parts.append(f'<path class="line s{number % 6}" d="{self._path(line)}"/>')
            parts += [
                f'<circle class="dot s{number % 6}" cx="{self._x(x)}" cy="{self._y(y)}" r="4"/>'
                for x, y in line.marks
            ]
        return self._svg("".join(parts) + self._legend("line"))

    def bars(self, edges: Sequence[float], stacks: Sequence[Points]) -> str:
        """Bars between neighbouring edges.

        Args:
            edges: one more than bars.
            stacks: for each part of the bars its bottom and top in each.
        """
        parts = []
        for number, stack in enumerate(stacks):
            for left, right, (bottom, top) in zip(edges[:-1], edges[1:], stack, strict=True):
                x, width = self._x(left), self._x(right) - self._x(left)
                y, height = self._y(top), self._y(bottom) - self._y(top)
                size = f'width="{max(0.5, width - 1):.1f}" height="{height:.1f}"'
                parts.append(f'<rect class="bar s{number}" x="{x}" y="{y}" {size}/>')
        return self._svg("".join(parts) + self._legend("bar"))

    @property
    def _top(self) -> float:
        return TOP + (LEGEND_LINE * len(self.names) if len(self.names) > 1 else 0)

    def _x(self, value: float) -> float:
        return round(LEFT + value / self.x.end * (WIDTH - LEFT - RIGHT), 1)

    def _y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - value / self.y.end * (HEIGHT - self._top - BOTTOM), 1)

    def _path(self, line: Line) -> str:
        (x, y), *rest = line.points
        parts = [f"M{self._x(x)} {self._y(y)}"]
        for x, y in rest:
            parts.append(f"H{self._x(x)}V{self._y(y)}" if line.is_step else self._to(x, y))
        return "".join(parts)

    def _to(self, x: float, y: float) -> str:
        return f"L{self._x(x)} {self._y(y)}"

    def _legend(self, kind: str) -> str:
        parts = []
        for number, name in enumerate(self.names if len(self.names) > 1 else ()):
            y = TOP + LEGEND_LINE * number
            sign = (
                f'<path class="line s{number % 6}" d="M{LEFT} {y}h28"/>'
                if kind == "line"
                else f'<rect class="bar s{number}" x="{LEFT}" y="{y - 5}" width="28" height="10"/>'
            )
            parts.append(f'{sign}<text x="{LEFT + 36}" y="{y + 4}">{_text(name)}</text>')
        return "".join(parts)

    def _svg(self, content: str) -> str:
        names = f'aria-labelledby="{self.key}-title {self.key}-desc"'
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {names}>'
            f'<title id="{self.key}-title">{_text(self.title)}</title>'
            f'<desc id="{self.key}-desc">{_text(self.description)}</desc>'
            f"{self._axes()}{content}</svg>"
        )

    def _axes(self) -> str:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        grid = [
            f'<path class="grid" d="M{LEFT} {self._y(v)}H{right}"/>'
            f'<text x="{LEFT - 6}" y="{self._y(v) + 4}" class="end">{v:g}</text>'
            for v in self.y.ticks()
        ]
        marks = [
            f'<path class="tick" d="M{self._x(v)} {bottom}v5"/>'
            f'<text x="{self._x(v)}" y="{bottom + 19}" class="middle">{v:g}</text>'
            for v in self.x.ticks()
        ]
        middle = (self._top + bottom) / 2
        labels = (
            f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" class="middle">'
            f"{_text(self.x.label)}</text>"
            f'<text transform="translate(13 {middle}) rotate(-90)" class="middle">'
            f"{_text(self.y.label)}</text>"
        )
        return f'{"".join(grid + marks)}<path class="axis" d="M{LEFT} {bottom}H{right}"/>{labels}'


def _text(text: str) -> str:
    return escape(visible(text))
