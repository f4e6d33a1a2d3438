"""The report as files and as a page: complete and self-contained."""

from __future__ import annotations

import csv
import html
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from analysis import Analysis
from analysis.__main__ import main
from seld.classes import STARSS_CLASSES
from seld.errors import InputError
from seld.records import TrialRecord, read_record, write_record
from tests.simulated_study import VARIANTS, SimulatedStudy, failed, write_simulated_study

STUDY = SimulatedStudy(
    arms={name: VARIANTS[name] for name in ("scratch", "doa_wise", "recording_wise")},
    recordings=6,
)
BROKEN = "scratch-15min-seed2"


def with_a_failure(record: TrialRecord) -> TrialRecord:
    return failed(record) if record.trial_id == "doa_wise-15min-seed1" else record


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "variants"
    write_simulated_study(folder, STUDY, with_a_failure)
    (folder / "trials" / BROKEN / "record.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def page(study_folder: Path) -> Path:
    return Analysis.of([study_folder]).write(study_folder / "report")


class Links(HTMLParser):
    """Collects whatever a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_page_is_self_contained_and_complete(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("<wbr>", "")
    links = Links()
    links.feed(text)
    assert links.found
    assert all(link.startswith("data:") for link in links.found)
    assert "<script" not in text
    first = text.index("Does DOA-aware pretraining")
    assert first < text.index("At 60 min of annotation") < text.index("<table")
    for needed in ("95 % interval", "gpu_memory", BROKEN, "simulated-data", "run_grid.py variants"):
        assert needed in text


def test_files_beside_the_page(page: Path) -> None:
    figures = {path.name for path in (page.parent / "figures").iterdir()}
    for name in ("budget", "localisation_detection", "classes", "rooms", "confusion",
                 "azimuth_error", "tracks"):  # fmt: skip
        assert {f"{name}.svg", f"{name}.png"} <= figures
    tables = page.parent / "tables"
    with (tables / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    markdown = (tables / "scores.md").read_text()
    latex = (tables / "scores.tex").read_text()
    assert r"\toprule" in latex
    assert r"recording\_wise" in latex
    for row in rows:  # one number format for all
        assert row["seld_error"] in markdown
        assert row["seld_error"] in latex
        assert f"[{row['seld_error_low']}, {row['seld_error_high']}]" in markdown
    failed_row = next(
        r for r in rows if r["arm"] == "doa_wise" and r["annotation_minutes"] == "15.0"
    )
    assert (failed_row["seeds"], failed_row["failed"]) == ("2", "1")


def test_classes_have_their_own_scores(page: Path, study_folder: Path) -> None:
    with (page.parent / "tables/classes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(STARSS_CLASSES) * len({row["arm"] for row in rows})
    assert {row["annotation_minutes"] for row in rows} == {"60.0"}
    records = [
        read_record(path.parent) for path in study_folder.glob("trials/scratch-60min-*/record.json")
    ]
    assert len(records) == len(STUDY.seeds)
    for row in (row for row in rows if row["arm"] == "scratch"):
        of_class = [
            entry
            for record in records
            for entry in record.per_class
            if entry["class_name"] == row["class"]
        ]
        assert len(of_class) == len(records)
        mean = sum(entry["f20"] for entry in of_class) / len(of_class)
        assert float(row["f20"]) == pytest.approx(100 * mean, abs=0.051)
        assert float(row["f20_low"]) < float(row["f20"]) < float(row["f20_high"])
        assert int(row["references"]) == of_class[0]["references"]


def test_latex_rows_have_as_many_entries_as_columns(page: Path) -> None:
    for path in (page.parent / "tables").glob("*.tex"):
        text = path.read_text()
        columns = re.search(r"\\begin\{tabular\}\{([lr]+(?:p\{[^}]*\})?)\}", text)
        assert columns
        count = len(re.sub(r"\{.*\}", "", columns[1]))
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 1
        for line in rows:
            assert len(re.findall(r"(?<!\\)&", line)) == count - 1
        assert text.isascii(), "pdflatex knows no other characters without help"


def test_budget_is_said_once_per_group_where_people_read(page: Path) -> None:
    latex = (page.parent / "tables/scores.tex").read_text()
    assert latex.count("15 min") == 1
    assert (page.parent / "tables/scores.md").read_text().count("15 min") == 3


def test_arms_that_cannot_be_compared_say_so_among_the_scores(tmp_path: Path) -> None:
    def change(record: TrialRecord) -> TrialRecord:
        if record.arm == "doa_wise":
            return replace(record, test_fingerprint="other")
        if record.arm == "recording_wise":
            return replace(record, seed=record.seed + 1, code_fingerprint="other")
        return record

    folder = write_simulated_study(tmp_path / "s", replace(STUDY, predictions=False), change)
    table = Analysis.of([folder], None).scores
    remarks = {row[1].text: row[-1].text for row in table.rows}
    assert remarks == {
        "scratch": "",
        "doa_wise": "not comparable with scratch: test recordings differ",
        "recording_wise": "against scratch: seeds differ, 2 in common, code differs",
    }
    assert not any(entry.bold for row in table.rows for entry in row)


def test_summary_prints_tables(study_folder: Path) -> None:
    console = Console(record=True, width=150, file=None, quiet=False)
    with console.capture() as capture:
        Analysis.of([study_folder]).print(console)
    for needed in ("SELD error", "doa_wise", "gpu_memory", "Differences to scratch"):
        assert needed in capture.get()


@pytest.mark.parametrize("width", [80, 200])
def test_no_number_is_cut_off_on_a_terminal(study_folder: Path, width: int) -> None:
    console = Console(width=width)
    with console.capture() as capture:
        Analysis.of([study_folder]).print(console)
    printed = capture.get()
    assert "…" not in printed
    for number in ("recording_wise", "(points)", "LE_CD", "Failed", "15 min doa_wise: "):
        assert number in printed
    # All intervals where there is room, else those of the SELD error.
    rows = [line for line in printed.splitlines() if line.count("[") and "]" in line]
    assert max(line.count("[") for line in rows) == (5 if width == 200 else 1)


def test_at_any_width_a_column_is_there_in_full_or_not_at_all(tmp_path: Path) -> None:
    """With names shorter than what they would be folded to, and the remarks below in full."""
    study = SimulatedStudy(
        arms={name: VARIANTS[name] for name in ("scratch", "avc")}, predictions=False
    )
    analysis = Analysis.of([write_simulated_study(tmp_path / "s", study)])
    for width in range(60, 130, 3):
        console = Console(width=width)
        for table in (analysis.scores, analysis.differences):
            with console.capture() as capture:
                console.print(table.screen(console))
            printed = capture.get()
            assert " ".join(table.note.split()) in " ".join(printed.split()), width
            texts = [entry.text for entry in table.rows[0][2:] if entry.text]
            row = next(line for line in printed.splitlines() if f" {texts[0]} " in line)
            shown = row[row.index(texts[0]) :].split()
            assert shown == texts[: len(shown)], width
            assert len(shown) >= 3, width


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_still_names_the_arms(study_folder: Path, width: int) -> None:
    """Names as long as ``recording_wise_unrotated`` fold; they once left no room for themselves."""
    name = "a_name_of_twenty_four_ch"
    table = Analysis.of([study_folder], "scratch").differences
    rows = tuple((row[0], replace(row[1], text=name), *row[2:]) for row in table.rows)
    console = Console(width=width)
    with console.capture() as capture:
        console.print(replace(table, rows=rows, note="").screen(console))
    lines = capture.get().splitlines()
    named = [line for line in lines if name[:12] in line and "−" in line]
    assert len(named) == len(rows)
    assert max(map(len, lines)) <= width


def test_unknown_baseline(study_folder: Path) -> None:
    with pytest.raises(InputError, match="--baseline"):
        Analysis.of([study_folder], "nonsense")


TINY = SimulatedStudy(
    arms={name: VARIANTS[name] for name in ("scratch", "avc", "doa_wise")},
    budgets_minutes=(15.0,),
    recordings=3,
    predictions=False,
)


def test_several_studies_are_compared_with_the_first_ones_baseline(tmp_path: Path) -> None:
    """Whose name comes last in the alphabet; arms stay in the order of their plans."""
    folders = [
        write_simulated_study(tmp_path / name, replace(TINY, name=name)) for name in ("b", "a")
    ]
    analysis = Analysis.of(folders)
    assert analysis.baseline == "b: scratch"
    arms = ("scratch", "avc", "doa_wise")
    assert analysis.results.arms == [f"{study}: {arm}" for study in "ba" for arm in arms]


def test_a_baseline_without_a_trial_is_not_replaced(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", TINY)
    for path in folder.glob("trials/scratch-*"):
        shutil.rmtree(path)
    for wanted in (None, "scratch"):
        analysis = Analysis.of([folder], wanted)
        assert analysis.baseline == "scratch"
        assert analysis.answer == "There is no answer yet: no arm can be compared with scratch."


@pytest.mark.parametrize("folders", [["nowhere"], ["one", "another"]])
def test_command_line_says_what_is_wrong_in_one_line(folders: list[str], tmp_path: Path) -> None:
    """A folder that is not there; two studies, of which neither's report may be replaced."""
    done = subprocess.run(
        [sys.executable, "-m", "analysis", *(str(tmp_path / name) for name in folders)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_nothing_finished_still_reports(tmp_path: Path) -> None:
    folder = write_simulated_study(
        tmp_path / "s", replace(STUDY, predictions=False, recordings=2), failed
    )
    assert "There is no answer yet" in Analysis.of([folder]).write(tmp_path / "out").read_text()


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", replace(STUDY, seeds=(0,), predictions=False))
    analysis = Analysis.of([folder], None)
    assert "no interval can be given" in analysis.answer
    assert not any(entry.bold for row in analysis.scores.rows for entry in row)
    Analysis.of([folder]).write(tmp_path / "out")


def test_sweep_draws_responses_and_importances(tmp_path: Path) -> None:
    def swept(record: TrialRecord) -> TrialRecord:
        values = {"pretrain.temperature": 0.01 * 1.3**record.seed,
                  "pretrain.directions.grid.count": 4 + 2 * (record.seed % 5),
                  "pretrain.objective": ("a", "b")[record.seed % 2]}  # fmt: skip
        if record.seed >= 14:  # as where another setting leaves it without effect
            del values["pretrain.temperature"]
        return replace(record, parameters=values, seed=0)

    study = replace(
        STUDY,
        arms={"sweep": VARIANTS["doa_wise"]},
        baseline="sweep",
        seeds=range(20),
        budgets_minutes=(30.0,),
        predictions=False,
        planned=False,
    )
    folder = write_simulated_study(tmp_path / "s", study, swept)
    # As where the search proposes the same settings again.
    path = min((folder / "trials").iterdir())
    again = path.with_name(f"{path.name}-again20")
    shutil.copytree(path, again)
    write_record(replace(read_record(path), trial_id=again.name), folder)
    page = Analysis.of([folder]).write(tmp_path / "out")
    names = {path.stem for path in (page.parent / "figures").iterdir()}
    assert names == {"responses", "importances"}
    text = page.read_text()
    assert "At 30 min of annotation: of 20 settings, the lowest" in text
    assert "importances from 20 trials at 30 min." in text
    assert "One point per trial at 30 min; " in text
    assert "Not weighed, as only some trials use them: pretrain.temperature." in text
    assert "How the intervals are made" not in text


def test_trials_of_other_settings_are_listed_and_not_counted(tmp_path: Path) -> None:
    """The commands of the README: a study, and again with other settings."""
    folder = write_simulated_study(tmp_path / "s", replace(STUDY, predictions=False))
    before = Analysis.of([folder], None)
    for path in sorted(folder.glob("trials/doa_wise-15min-*")):
        shutil.copytree(path, path.with_name(f"{path.name}-other"))
        record = read_record(path)
        write_record(
            replace(record, trial_id=f"{path.name}-other", config={"pretrain": {"steps": 9}}),
            folder,
        )
    after = Analysis.of([folder], None)
    assert after.differences == before.differences
    assert len(after.results.other_settings) == 3
    text = after.write(tmp_path / "out").read_text()
    assert "3 of other settings, not counted" in text
    assert (tmp_path / "out/tables/other_settings.csv").read_text().count("-other") == 3


def test_square_brackets_of_names_are_printed(tmp_path: Path) -> None:
    """Rich would take them for markup: leave out "[doa]"."""
    arms = {"scratch": VARIANTS["scratch"], "x[doa]": VARIANTS["doa_wise"]}
    study = replace(STUDY, arms=arms, baseline="x[doa]", predictions=False)
    folder = write_simulated_study(tmp_path / "s", study)
    console = Console(width=200)
    with console.capture() as capture:
        Analysis.of([folder]).print(console)
    printed = capture.get()
    assert "Differences to x[doa]" in printed
    assert "Arm minus x[doa]" in printed
    assert "above x[doa]'s" in printed.splitlines()[0]


def test_what_has_become_empty_leaves_the_report(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY, with_a_failure)
    out = tmp_path / "out"
    Analysis.of([folder]).write(out)
    assert (out / "tables/failures.csv").exists()
    assert (out / "figures/confusion.svg").exists()
    own = out / "tables/mine.csv"
    own.touch()
    shutil.rmtree(folder)
    write_simulated_study(folder, replace(STUDY, predictions=False))
    Analysis.of([folder]).write(out)
    assert not list((out / "tables").glob("failures.*"))
    assert not list((out / "figures").glob("confusion.*"))
    assert own.exists()


def test_missing_trials_are_told_of_beside_another_study(tmp_path: Path) -> None:
    study = replace(STUDY, predictions=False, recordings=4, budgets_minutes=(15.0,))
    folders = [
        write_simulated_study(tmp_path / name, replace(study, name=name)) for name in ("one", "two")
    ]
    shutil.rmtree(folders[1] / "trials/doa_wise-15min-seed1")
    remarks = {row[1].text: row[-1].text for row in Analysis.of(folders, None).scores.rows}
    assert "1 not run to the end" in remarks["two: doa_wise"]
    assert "not run" not in remarks["one: doa_wise"]


def test_the_command_that_makes_the_report_is_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several studies it says where to, as it must; of one it need not."""
    folders = [
        write_simulated_study(tmp_path / name, replace(TINY, name=name)) for name in ("b", "a")
    ]
    for studies, out in ((folders, tmp_path / "out of both"), (folders[:1], folders[0] / "report")):
        page = Analysis.of(studies).write(out)
        (command,) = re.findall(r"<code>(python -m analysis .*)</code>", page.read_text())
        made = page.read_bytes()
        page.unlink()
        monkeypatch.setattr(sys, "argv", shlex.split(html.unescape(command))[2:])
        main()
        assert page.read_bytes() == made
