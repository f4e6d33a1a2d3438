"""One HTML page that opens offline, with the tables and figures beside it as files."""

from __future__ import annotations

import base64
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from rich.console import Console
from rich.text import Text

from analysis import figures, tables
from analysis.answer import answer, sweep_answer
from analysis.compare import RESAMPLES, Comparison
from analysis.load import Results, load_studies
from analysis.probes import probe_figures, probes_table
from analysis.scores import SCORES
from analysis.signatures import Finding, find_signatures, signatures_table
from analysis.sweeps import other_code, points
from seld.errors import InputError

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What is said about a set of results, before it is printed or written."""

    results: Results
    comparison: Comparison
    baseline: str
    answer: str
    scores: tables.Table
    differences: tables.Table
    classes: tables.Table
    sweep: tables.Table
    probes: tables.Table
    signatures: tables.Table
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    records: tuple[tables.Table, ...]

    @classmethod
    def of(cls, study_folders: Sequence[Path], baseline: str | None = None) -> Analysis:
        """Load the studies and compute everything but the figures.

        Args:
            study_folders: as :func:`analysis.load.load_studies`.
            baseline: the arm that others are compared with; the first study's own where None.

        Raises:
            InputError: no study, or an unknown baseline.
        """
        results = load_studies(study_folders)
        chosen = _baseline(results, baseline)
        comparison = Comparison(results)
        differences = comparison.differences(chosen)
        swept = points(results)
        listed = (
            tables.failures_table(results),
            tables.unreadable_table(results),
            tables.missing_table(results),
            tables.other_settings_table(results),
            tables.other_tests_table(results),
        )
        findings = find_signatures(comparison, chosen)
        return cls(
            results=results,
            comparison=comparison,
            baseline=chosen,
            answer=sweep_answer(swept) if results.only_swept else answer(differences, chosen),
            scores=tables.arms_table(comparison, chosen),
            differences=tables.differences_table(differences, chosen),
            classes=tables.classes_table(comparison),
            sweep=tables.sweep_table(swept),
            probes=probes_table(results),
            signatures=signatures_table(findings),
            findings=tuple(finding for finding in findings if finding.triggered),
            warnings=tuple(other_code(results)),
            records=listed,
        )

    @property
    def all_tables(self) -> list[tables.Table]:
        """In order of reading, those without rows as well."""
        return [
            self.scores,
            self.differences,
            self.classes,
            self.sweep,
            self.probes,
            self.signatures,
            *self.records,
        ]

    def print(self, console: Console) -> None:
        """The answer and the tables, on a terminal."""
        console.print(Text(self.answer, "bold"))
        for warning in self.warnings:
            console.print(Text(warning, "bold yellow"))
        for table in (self.scores, self.differences, self.sweep, *self.records):
            if table.rows:
                console.print()
                console.print(table.screen(console))
        for finding in self.findings:
            console.print(
                Text.assemble(
                    (finding.signature.title, "bold"), f": {finding.arm}, {finding.evidence}"
                )
            )

    def write(self, out: Path) -> Path:
        """Write ``index.html``, ``tables/`` and ``figures/``; returns the page's path.

        Raises:
            InputError: the folder cannot be written.
        """
        of_predictions, unreadable = figures.prediction_figures(self.comparison, self.baseline)
        pictures = [
            *figures.score_figures(self.comparison, self.baseline),
            *figures.sweep_figures(self.comparison),
            *probe_figures(self.results),
            *of_predictions,
        ]
        page = self._page(out, pictures, [f"{item.path}: {item.reason}" for item in unreadable])
        try:
            for folder in (out / "tables", out / "figures"):
                folder.mkdir(parents=True, exist_ok=True)
            for table in self.all_tables:
                _write_table(table, out / "tables")
            # What an earlier report has drawn may have nothing to show any more.
            for name, suffix in itertools.product(figures.NAMES, ("svg", "png")):
                (out / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)
            for picture in pictures:
                assert picture.name in figures.NAMES
                picture.write(out / "figures")
            path = out / "index.html"
            path.write_text(page, encoding="utf-8")
        except OSError as error:
            raise InputError("--out", "folder", str(out), f"writable: {error.strerror}") from error
        return path

    def _page(self, out: Path, pictures: Sequence[figures.Picture], remarks: Sequence[str]) -> str:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["symbols"] = _symbols
        environment.filters["breakable"] = _breakable
        results = self.results
        return environment.get_template("report.html.j2").render(
            style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
            questions=[study.record.question for study in results.studies if study.record],
            title=" + ".join(study.folder.name for study in results.studies),
            answer=self.answer,
            scores=self.scores,
            tables=(self.scores, self.differences, self.classes, self.sweep, self.probes),
            signatures=self.signatures,
            findings=self.findings,
            minutes=tables.minutes,
            warnings=self.warnings,
            remarks=remarks,
            pictures=[(picture, _data_uri(picture)) for picture in pictures],
            records=[table for table in self.records if table.rows],
            counts=_trial_counts(results),
            notes=[n for study in results.studies if study.record for n in study.record.notes],
            reproduction=_reproduction(results, self.baseline, out),
            resamples=RESAMPLES,
            baseline=self.baseline,
        )


def _write_table(table: tables.Table, folder: Path) -> None:
    """The table's files; none of an earlier report where it has no rows any more."""
    for suffix, text in (("md", table.markdown), ("tex", table.latex), ("csv", table.csv)):
        path = folder / f"{table.name}.{suffix}"
        if table.rows:
            path.write_text(text(), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def _symbols(text: str) -> Markup:
    """``text`` with the subscripts of the scores' labels."""
    html = str(escape(text))
    for score in SCORES:
        if score.subscript:
            html = html.replace(score.label, f"{score.base}<sub>{score.subscript}</sub>")
    return Markup(html)


def _breakable(text: str) -> Markup:
    """``text`` that may be broken after its underscores, where a screen is narrow."""
    return Markup(str(escape(text)).replace("_", "_<wbr>"))


def _baseline(results: Results, wanted: str | None) -> str:
    """The arm to compare with; the plan's stays though no trial of it can be read."""
    arms = results.arms
    if wanted is not None:
        if arms and wanted not in results.labels.values():
            raise InputError("--baseline", "arm", wanted, f"one of {', '.join(arms)}")
        return wanted
    own = [
        results.labels.get((study.folder, study.record.baseline), study.record.baseline)
        for study in results.studies
        if study.record
    ]
    compared = [arm for arm in own if arm not in results.swept_arms]
    return (compared or own or arms or ["baseline"])[0]


def _trial_counts(results: Results) -> dict[str, int]:
    statuses = [trial.record.status for trial in results.trials]
    return {
        "finished": statuses.count("finished"),
        "failed": statuses.count("failed"),
        "stopped": statuses.count("stopped"),
        "not finished": len(results.missing),
        "unreadable": len(results.unreadable),
        "of other settings, not counted": len(results.other_settings),
        "on other test recordings, not counted": len(results.other_tests),
    }


def _reproduction(results: Results, baseline: str, out: Path) -> list[tuple[str, list[str]]]:
    """Label and values of everything needed to run this again."""
    records = [trial.record for trial in results.trials]
    folders = [str(study.folder) for study in results.studies]
    # The command line asks for a folder where there are several studies.
    place = ["--out", str(out.resolve())] if len(folders) > 1 else []
    report = shlex.join(["python", "-m", "analysis", *folders, "--baseline", baseline, *place])
    commands = [
        line
        for study in results.studies
        if study.record
        for line in study.record.command.splitlines()
    ]
    versions = sorted({f"{k} {v}" for record in records for k, v in record.versions.items()})

    def distinct(name: str) -> list[str]:
        return sorted({getattr(record, name) for record in records} - {""})

    facts = [
        ("Run the study", [command for command in commands if command]),
        ("Make this report", [report]),
        ("Scale", sorted({study.record.scale for study in results.studies if study.record})),
        ("Commit", distinct("commit")),
        ("Code fingerprint", distinct("code_fingerprint")),
        ("Data fingerprint", distinct("data_fingerprint")),
        ("Test recordings' fingerprint", distinct("test_fingerprint")),
        ("Metric", distinct("metric_version")),
        ("Versions", [", ".join(versions)] if versions else []),
        ("Seeds", [", ".join(str(seed) for seed in sorted({r.seed for r in records}))]),
    ]
    return [(label, values) for label, values in facts if values]


def _data_uri(picture: figures.Picture) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture.svg).decode("ascii")
