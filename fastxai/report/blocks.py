"""What a section of a report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from fastxai._check import require

__all__ = ["Block", "Panels", "Picture", "Section", "Table", "Text"]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text, the first column to the left, the others to the right.

    Attributes:
        head: of the columns, all different: a program finds a number by it.
        rows: as long as the head, each.
        caption: below it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        """Check the head."""
        require(len(set(self.head)) == len(self.head), "head", "name every column differently", self.head)


@dataclass(frozen=True)
class Panels:
    """Small diagrams that stand side by side where there is room, and below one another on a phone.

    Attributes:
        figures: transparent, drawn with ``draw.panel``.
        caption: below them.
    """

    figures: Sequence[Figure]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """One figure with images in it, on white.

    Attributes:
        figure: such as ``fastxai.viz.grid`` makes.
        caption: below it.
    """

    figure: Figure
    caption: str = ""


Block = Text | Table | Panels | Picture


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        title: its heading.
        needs: experiments without which it has nothing to show.
        blocks: what it shows; empty if the rows are missing.
        missing: what it says without blocks where the rows are there; "" names the needs.
    """

    title: str
    needs: Sequence[str]
    blocks: Sequence[Block] = field(default_factory=tuple)
    missing: str = ""
