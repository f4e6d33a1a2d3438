"""Tables for papers and screens: one content, one number format, five ways to print it.

Markdown, LaTeX (booktabs), CSV, the terminal and HTML (through the report's template).
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table as ScreenTable
from rich.text import Text

from analysis.compare import CellEstimates, Comparison, Difference, Estimate
from analysis.load import Results, Trial
from analysis.scores import F20, SCORES, SELD_ERROR, Score, p_text
from analysis.sweeps import Points
from seld.records import FAILURE_KINDS

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": r"$-$",
        "–": "--",
        "°": r"$^\circ$",
        "Δ": r"$\Delta$",
        "≥": r"$\geq$",
        "τ": r"$\tau$",
        "→": r"$\rightarrow$",
        "’": "'",
        "<": r"$<$",
        ">": r"$>$",
        "±": r"$\pm$",
        "×": r"$\times$",
    }
)


#: A last column with more characters than this is set as a paragraph.
_LONG_TEXT = 30

#: Columns that say where a trial belongs.
_PLACE = {"arm": "Arm", "annotated": "Annotated", "seed": "Seed"}

#: Of the column of arms, on a terminal too narrow for it.
_NAME_WIDTH = 12


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a table: a value, with its interval where it has one."""

    text: str
    interval: str = ""
    bold: bool = False

    @property
    def plain(self) -> str:
        """Value and interval on one line."""
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table.

    Attributes:
        name: of its files.
        note: what a reader must know to read it.
        values: the same rows for CSV, numbers in printed units, one column per number.
        numeric: which columns are aligned right.
        groups: numbers of the rows before which a rule is drawn.
        grouped: the first column names the group; where a page or paper shows it, only the
            group's first row repeats it.
    """

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    values: tuple[Mapping[str, object], ...]
    numeric: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()
    grouped: bool = False

    @property
    def shown_rows(self) -> tuple[tuple[Entry, ...], ...]:
        """The rows as a page, a paper or a terminal shows them."""
        if not self.grouped:
            return self.rows
        blank = Entry(text="")
        return tuple(
            row if number == 0 or number in self.groups else (blank, *row[1:])
            for number, row in enumerate(self.rows)
        )

    def markdown(self) -> str:
        """The table as Markdown, its note below."""
        lines = [
            _markdown_row(self.columns),
            _markdown_row(
                ["---:" if place in self.numeric else ":---" for place in range(len(self.columns))]
            ),
        ]
        lines += [
            _markdown_row(
                [f"**{e.text}** {e.interval}".strip() if e.bold else e.plain for e in row]
            )
            for row in self.rows
        ]
        return f"### {self.title}\n\n" + "\n".join(lines) + f"\n\n{self.note}\n"

    def latex(self) -> str:
        """A ``table`` environment that needs the packages booktabs and graphicx.

        Intervals stand below their values and units below their labels. Where a table is still
        wider than the text it is made smaller.
        """
        labels, units = zip(*(_label_and_unit(column) for column in self.columns), strict=True)
        lines = [
            r"% \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"  \centering\small\setlength{\tabcolsep}{3.5pt}",
            rf"  \caption{{{_latex(self.title)}. {_latex(self.note)}}}",
            rf"  \label{{tab:{self.name}}}",
            r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"  \begin{{tabular}}{{{self._latex_columns()}}}",
            r"    \toprule",
            _latex_row(_latex(label) for label in labels),
            *([_latex_row(_latex(unit) for unit in units)] if any(units) else []),
            r"    \midrule",
        ]
        for number, row in enumerate(self.shown_rows):
            if number in self.groups and number:
                lines.append(r"    \midrule")
            lines.append(
                _latex_row(
                    rf"\textbf{{{_latex(e.text)}}}" if e.bold else _latex(e.text) for e in row
                )
            )
            if any(e.interval for e in row):
                lines.append(
                    _latex_row(
                        rf"{{\scriptsize {_latex(e.interval)}}}" if e.interval else "" for e in row
                    )
                )
        lines += [r"    \bottomrule", r"  \end{tabular}}", r"\end{table}", ""]
        return "\n".join(lines)

    def _latex_columns(self) -> str:
        kinds = ["r" if place in self.numeric else "l" for place in range(len(self.columns))]
        if self.rows and max(len(row[-1].text) for row in self.rows) > _LONG_TEXT:
            kinds[-1] = r"p{0.22\linewidth}" if self.numeric else r"p{0.45\linewidth}"
        return "".join(kinds)

    def csv(self) -> str:
        """One line per row, numbers in printed units and rounding, blank where there are none."""
        stream = io.StringIO()
        fields = list(dict.fromkeys(name for row in self.values for name in row))
        writer = csv.DictWriter(stream, fields, lineterminator="\n")
        writer.writeheader()
        for row in self.values:
            writer.writerow({name: _known(value) for name, value in row.items()})
        return stream.getvalue()

    def screen(self, console: Console) -> ScreenTable:
        """The table for a terminal, numbers never cut off.

        Where a table of numbers is wider than the terminal, intervals stand only below the first
        score, and its last columns are left to the report. Its remarks are listed below it.
        """
        full = self._screen(intervals=frozenset(range(len(self.columns))))
        unlimited = console.options.update(max_width=10_000)

        def natural_width(table: ScreenTable) -> int:
            return console.measure(table, options=unlimited).maximum

        if not self.grouped or natural_width(full) <= console.width:
            return full
        folded = self._longest_name - self._name_width
        for left_out in range(len(self.columns) - 3):
            narrow = self._screen(intervals=frozenset({2}), left_out=left_out)
            if natural_width(narrow) - folded <= console.width:
                return narrow
        return full

    @property
    def _name_width(self) -> int:
        """Below which the names of arms are not folded."""
        return min(_NAME_WIDTH, self._longest_name)

    @property
    def _longest_name(self) -> int:
        return max((cell_len(row[1].text) for row in self.rows), default=0)

    def _screen(self, *, intervals: frozenset[int], left_out: int = 0) -> ScreenTable:
        columns, rows, caption = self.columns, self.shown_rows, self.note
        if self.grouped and columns[-1] == "Remarks":
            remarks = [
                f"{row[0].text} {row[1].text}: {row[-1].text}" for row in self.rows if row[-1].text
            ]
            caption = "\n".join([caption, *remarks])
            columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
        shown = len(columns) - left_out
        columns, rows = columns[:shown], tuple(row[:shown] for row in rows)
        table = ScreenTable(
            title=escape(self.title),
            caption=escape(caption),
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for place, column in enumerate(columns):
            numeric = place in self.numeric
            label, unit = _label_and_unit(column) if self.grouped else (column, "")
            table.add_column(
                escape(f"{label}\n{unit}" if unit else label),
                justify="right" if numeric else "left",
                # Of a table of numbers, only names may be folded.
                no_wrap=self.grouped and place != 1,
                min_width=self._name_width if self.grouped and place == 1 else None,
                overflow="fold",
            )
        for number, row in enumerate(rows):
            if number in self.groups and number:
                table.add_section()
            table.add_row(
                *(
                    Text.assemble(
                        (entry.text, "bold" if entry.bold else ""),
                        (
                            f"\n{entry.interval}" if entry.interval and place in intervals else "",
                            "dim",
                        ),
                    )
                    for place, entry in enumerate(row)
                )
            )
        return table


def arms_table(comparison: Comparison, baseline: str) -> Table:
    """Arms × budgets with all scores, 95 % intervals, seeds and failures.

    What keeps an arm from being compared with the baseline, or asks for care, is a remark.
    """
    results = comparison.results
    cells = sorted(
        comparison.cells.values(),
        key=lambda cell: (cell.budget_minutes, results.arms.index(cell.arm)),
    )
    missing = Counter((item.arm, item.annotation_minutes) for item in results.missing)
    rows, values = [], []
    for cell in cells:
        best = {
            score.name: comparison.best_resolved.get((cell.budget_minutes, score.name)) == cell.arm
            for score in SCORES
        }
        absent = cell.unfinished + missing[cell.arm, cell.budget_minutes]
        notes = [*(f"refused: {reason}" for reason in cell.refusals), *cell.caveats]
        notes += _against_baseline(comparison, cell, baseline)
        if absent:
            notes.append(f"{absent} not run to the end")
        if cell.not_learnt:
            what = "pretraining learnt no classes"
            notes.append(f"{what} (retrieval at chance) in {cell.not_learnt}")
        remarks = "; ".join(notes)
        rows.append(
            (
                Entry(text=minutes(cell.budget_minutes)),
                Entry(text=cell.arm),
                *(_entry(cell.estimates.get(s.name), s, bold=best[s.name]) for s in SCORES),
                Entry(text=str(cell.seeds)),
                Entry(text=str(cell.failed)),
                Entry(text=remarks),
            )
        )
        values.append(_cell_values(cell, remarks))
    table = Table(
        name="scores",
        title="Scores by annotation budget and arm",
        note=(
            "Mean over seeds with 95 % interval over seeds and test recordings. Bold: best at "
            "its budget, and its paired difference to every other arm is resolved (Holm-adjusted "
            "p < 0.05). SELD error, ER20 and LE_CD: lower is better; F20 and LR_CD: higher."
        ),
        columns=(
            "Annotated",
            "Arm",
            *(score.heading for score in SCORES),
            "Seeds",
            "Failed",
            "Remarks",
        ),
        rows=tuple(rows),
        numeric=frozenset({0, *range(2, 4 + len(SCORES))}),
        groups=_group_starts([cell.budget_minutes for cell in cells]),
        values=tuple(values),
        grouped=True,
    )
    return without_empty_last_column(table)


def classes_table(comparison: Comparison) -> Table:
    """F20 of every class and arm at the largest budget; as CSV all scores.

    The first arm says which classes there are; one scored on others is left out.
    """
    budget = comparison.largest_budget
    by_arm = {
        arm: comparison.class_estimates(arm, at)
        for (arm, at), cell in comparison.cells.items()
        if at == budget and cell.estimates
    }
    names = list(next(iter(by_arm.values()), {}))
    by_arm = {arm: found for arm, found in by_arm.items() if list(found) == names}
    references = {name: found.references for name, found in next(iter(by_arm.values()), {}).items()}
    rows = tuple(
        (
            Entry(text=name.replace("_", " ")),
            Entry(text=str(references[name])),
            *(_entry(found[name].estimates[F20.name], F20) for found in by_arm.values()),
        )
        for name in names
    )
    values: list[dict[str, object]] = []
    for name in names:
        for arm, found in by_arm.items():
            row: dict[str, object] = {"annotation_minutes": budget, "class": name, "arm": arm}
            for score in SCORES:
                row |= _estimate_values(score, found[name].estimates[score.name])
            values.append(row | {"references": references[name]})
    return Table(
        name="classes",
        title=f"{F20.heading} by class at {minutes(budget or 0.0)}",
        note=(
            "Mean over seeds with 95 % interval over seeds and test recordings, not corrected for "
            "the number of classes; higher is better. References are counted as the metric does: "
            "once per second and track. The other scores of each class are in classes.csv."
        ),
        columns=("Class", "References", *by_arm),
        rows=rows,
        numeric=frozenset(range(1, 2 + len(by_arm))),
        values=tuple(values),
    )


def differences_table(differences: Sequence[Difference], baseline: str) -> Table:
    """Every arm against the baseline, paired, with corrected p-values."""
    ordered = sorted(differences, key=lambda item: item.budget_minutes)
    rows, values = [], []
    for item in ordered:
        primary = item.primary
        remarks = "; ".join([*(f"refused: {r}" for r in item.refusals), *item.caveats])
        rows.append(
            (
                Entry(text=minutes(item.budget_minutes)),
                Entry(text=item.arm),
                *(
                    _entry(
                        item.estimates.get(score.name),
                        score,
                        signed=True,
                        bold=score is SELD_ERROR and item.by_the_arm,
                    )
                    for score in SCORES
                ),
                Entry(text=str(primary.seeds if primary else 0)),
                Entry(text=p_text(item.p_holm)),
                Entry(text=p_text(item.p_permutation_holm)),
                Entry(text=remarks),
            )
        )
        row: dict[str, object] = {
            "annotation_minutes": item.budget_minutes,
            "arm": item.arm,
            "baseline": item.other,
        }
        for score in SCORES:
            row |= _estimate_values(score, item.estimates.get(score.name))
        values.append(
            row
            | {
                "pairs": primary.seeds if primary else 0,
                "p": primary.p_value if primary else None,
                "p_holm": item.p_holm,
                "p_permutation": item.p_permutation,
                "p_permutation_holm": item.p_permutation_holm,
                "remarks": remarks,
            }
        )
    table = Table(
        name="differences",
        title=f"Differences to {baseline}",
        note=(
            f"Arm minus {baseline}, paired by seed, budget and test recordings, with 95 % "
            "interval; a negative difference of SELD error is an improvement. p-values are for "
            "the SELD error, Holm-adjusted over all rows: p is by Student's t, "
            "p perm. by the exchange of arms within seeds, which cannot be small with few pairs. "
            "Bold: resolved (Holm-adjusted p < 0.05), by arms whose settings differ in nothing "
            "else."
        ),
        columns=(
            "Annotated",
            "Arm",
            *(f"Δ {score.heading}" for score in SCORES),
            "Pairs",
            "p",
            "p perm.",
            "Remarks",
        ),
        rows=tuple(rows),
        numeric=frozenset({0, *range(2, 5 + len(SCORES))}),
        groups=_group_starts([item.budget_minutes for item in ordered]),
        values=tuple(values),
        grouped=True,
    )
    return without_empty_last_column(table)


def sweep_table(found: Points) -> Table:
    """The ten best points of sweeps; with several goals all on the front."""
    several = len(found.goals) > 1
    shown = found.best if several else found.best.head(10)
    goals = found.goals if SELD_ERROR in found.goals else (*found.goals, SELD_ERROR)
    columns = {goal.name: goal.heading for goal in goals} | {name: name for name in found.settings}
    place = f" at {minutes(found.budget_minutes)}" if found.budget_minutes else ""
    note = f"Single trials{place}; the best of many is flattered by luck."
    if several:
        note = (
            f"Single trials{place or ', of all budgets,'} that none beats: no other is as low in "
            "every goal. The best of many are flattered by luck."
        )
    return _listing(
        name="sweep",
        title=f"{'Settings on the front' if several else 'Best settings'} of the sweep{place}",
        note=note,
        columns=columns,
        rows=[
            (
                *(goal.number(row[goal.name]) for goal in goals),
                *(setting(row[name]) for name in found.settings),
            )
            for row in shown.to_dict("records")
        ],
        numeric=frozenset(range(len(columns))),
    )


def failures_table(results: Results) -> Table:
    """Every trial that failed, and why."""
    failed = [trial for trial in results.trials if trial.record.failure is not None]
    rows, values = [], []
    for trial in failed:
        failure = trial.record.failure
        assert failure is not None
        row = {
            "trial": trial.record.trial_id,
            "arm": trial.arm,
            "annotated": minutes(trial.budget_minutes),
            "seed": trial.record.seed,
            "stage": failure.stage,
            "kind": failure.kind,
            "meaning": FAILURE_KINDS[failure.kind],
            "message": failure.message,
            "attempts": failure.attempts,
        }
        rows.append(
            tuple(Entry(text=str(row[key])) for key in row if key not in ("trial", "meaning"))
        )
        values.append(row)
    return Table(
        name="failures",
        title="Failed trials",
        note="They count as failed in the tables of scores and enter no mean.",
        columns=("Arm", "Annotated", "Seed", "Stage", "Kind", "Message", "Attempts"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 6}),
        values=tuple(values),
    )


def unreadable_table(results: Results) -> Table:
    """Every file that could not be used."""
    return Table(
        name="unreadable",
        title="Records that could not be read",
        note="They enter no mean and are not counted as failed.",
        columns=("Where", "Why"),
        rows=tuple(
            (Entry(text=_short_path(results, item.path)), Entry(text=item.reason))
            for item in results.unreadable
        ),
        values=tuple(
            {"path": str(item.path), "reason": item.reason} for item in results.unreadable
        ),
    )


def missing_table(results: Results) -> Table:
    """Every planned trial that has no record yet."""
    return _listing(
        name="missing",
        title="Trials without a record",
        note="Not begun, under way, or stopped before the end.",
        columns=_PLACE | {"trial": "Trial"},
        rows=[
            (item.arm, minutes(item.annotation_minutes), str(item.seed), item.trial_id)
            for item in results.missing
        ],
        numeric=frozenset({1, 2}),
    )


def other_settings_table(results: Results) -> Table:
    """Every trial in whose place one of other settings counts."""
    return _uncounted_table(
        results.other_settings,
        name="other_settings",
        title="Trials of other settings, not counted",
        note=(
            "Of the same arm, budget and seed as a trial that counts: the one that the study's "
            "last command for it planned."
        ),
    )


def other_tests_table(results: Results) -> Table:
    """Every trial that other data have left in a study's folder."""
    return _uncounted_table(
        results.other_tests,
        name="other_tests",
        title="Trials on other test recordings, not counted",
        note=(
            "Of an arm, budget and seed that the study does not plan, and not scored on the "
            "recordings that its planned trials, as far as they have records, were scored on."
        ),
    )


def _uncounted_table(trials: Sequence[Trial], *, name: str, title: str, note: str) -> Table:
    return _listing(
        name=name,
        title=title,
        note=note,
        columns=_PLACE | {"status": "Status", "trial": "Trial"},
        rows=[
            (
                item.arm,
                minutes(item.budget_minutes),
                str(item.record.seed),
                item.record.status,
                item.record.trial_id,
            )
            for item in trials
        ],
        numeric=frozenset({1, 2}),
    )


def _listing(
    *,
    name: str,
    title: str,
    note: str,
    columns: Mapping[str, str],
    rows: Sequence[Sequence[str]],
    numeric: frozenset[int],
) -> Table:
    """A table whose CSV holds the texts that it shows; ``columns``: titles by the CSV's names."""
    return Table(
        name=name,
        title=title,
        note=note,
        columns=tuple(columns.values()),
        rows=tuple(tuple(Entry(text=text) for text in row) for row in rows),
        values=tuple(dict(zip(columns, row, strict=True)) for row in rows),
        numeric=numeric,
    )


def without_empty_last_column(table: Table) -> Table:
    """The table without its remarks where there are none."""
    if any(row[-1].text for row in table.rows):
        return table
    return replace(table, columns=table.columns[:-1], rows=tuple(row[:-1] for row in table.rows))


def minutes(budget_minutes: float) -> str:
    """A budget as printed."""
    return f"{budget_minutes:g} min"


def setting(value: object) -> str:
    """A swept setting as printed; a dash where a trial does not use it."""
    if value is None or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _entry(
    item: Estimate | None, score: Score, *, signed: bool = False, bold: bool = False
) -> Entry:
    if item is None:
        return Entry(text="–")
    interval = score.interval(item.low, item.high, signed=signed) if item.has_interval else "[–]"
    return Entry(text=score.number(item.mean, signed=signed), interval=interval, bold=bold)


def _against_baseline(comparison: Comparison, cell: CellEstimates, baseline: str) -> list[str]:
    """How the arm's trials differ from the baseline's in more than the arm."""
    other = comparison.cells.get((baseline, cell.budget_minutes))
    if cell.arm == baseline or other is None or not cell.estimates or not other.estimates:
        return []
    found = comparison.difference(cell.arm, baseline, cell.budget_minutes)
    if found.refusals:
        return [f"not comparable with {baseline}: {', '.join(found.refusals)}"]
    notes = [note for note in found.caveats if note not in cell.caveats]
    return [f"against {baseline}: {', '.join(notes)}"] if notes else []


def _cell_values(cell: CellEstimates, remarks: str) -> dict[str, object]:
    row: dict[str, object] = {"annotation_minutes": cell.budget_minutes, "arm": cell.arm}
    for score in SCORES:
        row |= _estimate_values(score, cell.estimates.get(score.name))
    return row | {"seeds": cell.seeds, "failed": cell.failed, "remarks": remarks}


def _estimate_values(score: Score, item: Estimate | None) -> dict[str, object]:
    numbers = (item.mean, item.low, item.high) if item else (None, None, None)
    names = (score.name, f"{score.name}_low", f"{score.name}_high")
    return {
        name: None
        if number is None or number != number
        else f"{number * score.scale:.{score.decimals}f}"
        for name, number in zip(names, numbers, strict=True)
    }


def _group_starts(keys: Sequence[float]) -> frozenset[int]:
    return frozenset(n for n in range(1, len(keys)) if keys[n] != keys[n - 1])


def _short_path(results: Results, path: object) -> str:
    for study in results.studies:
        prefix = f"{study.folder.parent}/"
        if str(path).startswith(prefix):
            return str(path).removeprefix(prefix)
    return str(path)


def _known(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _markdown_row(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entry.replace("|", r"\|") for entry in entries) + " |"


def _label_and_unit(column: str) -> tuple[str, str]:
    label, opening, unit = column.partition(" (")
    return label, f"({unit}" if opening else ""


def _latex_row(entries: Iterable[str]) -> str:
    return "    " + " & ".join(entries) + r" \\"


def _latex(text: str) -> str:
    escaped = text.translate(_LATEX)
    for score in SCORES:
        escaped = escaped.replace(score.label.translate(_LATEX), score.symbol)
    return escaped
