"""The scores a reader sees: their names, units, direction and the one format of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """One column of the result tables.

    Attributes:
        name: the key in a trial record's metrics (a fraction or degrees).
        label: what tables and axes print.
        unit: of the printed number; "" where it has none.
        scale: printed number = ``scale`` × stored value.
        decimals: of the printed number.
        lower_is_better: direction of improvement.
        subscript: how the label ends where papers set that end lower.
        lowest: the stored value that none can be below.
        highest: the stored value that none can be above.
    """

    name: str
    label: str
    unit: str
    scale: float
    decimals: int
    lower_is_better: bool
    subscript: str = ""
    lowest: float = 0.0
    highest: float = math.inf

    @property
    def heading(self) -> str:
        """Label with unit, as axes and table heads print it."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def base(self) -> str:
        """The label without its subscript."""
        return self.label.removesuffix(self.subscript).removesuffix("_")

    @property
    def symbol(self) -> str:
        """The label with its subscript, for figures and LaTeX."""
        return rf"{self.base}$_\mathrm{{{self.subscript}}}$" if self.subscript else self.label

    @property
    def symbol_heading(self) -> str:
        """The heading with the label as mathematics."""
        return self.heading.replace(self.label, self.symbol)

    def improves(self, difference: float) -> bool:
        """Whether a score that changes by ``difference`` gets better; no difference is none."""
        return difference < 0 if self.lower_is_better else difference > 0

    def number(self, value: float | None, *, signed: bool = False) -> str:
        """``value`` as printed; a dash where there is none, a true minus sign."""
        if value is None or not math.isfinite(value):
            return "–"
        # Adding zero turns a rounded −0.0 into 0.0.
        rounded = round(value * self.scale, self.decimals) + 0.0
        text = f"{rounded:+.{self.decimals}f}" if signed else f"{rounded:.{self.decimals}f}"
        return text.replace("-", "−")

    def interval(self, low: float, high: float, *, signed: bool = False) -> str:
        """``[low, high]`` as printed."""
        return f"[{self.number(low, signed=signed)}, {self.number(high, signed=signed)}]"


SELD_ERROR = Score(
    name="seld_error",
    label="SELD error",
    unit="points",
    scale=100.0,
    decimals=1,
    lower_is_better=True,
)
ER20 = Score(
    name="er20",
    label="ER20",
    unit="",
    scale=1.0,
    decimals=2,
    lower_is_better=True,
    subscript="20",
)
F20 = Score(
    name="f20",
    label="F20",
    unit="%",
    scale=100.0,
    decimals=1,
    lower_is_better=False,
    subscript="20",
    highest=1.0,
)
LE_CD = Score(
    name="le_cd_deg",
    label="LE_CD",
    unit="°",
    scale=1.0,
    decimals=1,
    lower_is_better=True,
    subscript="CD",
    highest=180.0,
)
LR_CD = Score(
    name="lr_cd",
    label="LR_CD",
    unit="%",
    scale=100.0,
    decimals=1,
    lower_is_better=False,
    subscript="CD",
    highest=1.0,
)

#: In the order of tables; the first is the study's primary outcome, which p-values are for.
SCORES: tuple[Score, ...] = (SELD_ERROR, ER20, F20, LE_CD, LR_CD)


def p_text(p_value: float) -> str:
    """A p-value with two digits, never as zero."""
    if not math.isfinite(p_value):
        return "–"
    if p_value < 0.001:
        return "<0.001"
    return f"{p_value:.2f}" if p_value >= 0.1 else f"{p_value:.3f}"
