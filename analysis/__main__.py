"""``python -m analysis RESULTS_DIR [RESULTS_DIR …] [--baseline ARM] [--out DIR]``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from analysis.report import Analysis
from seld.errors import CommandLine, InputError, exit_on_input_error


def main() -> None:
    """Print the tables and write the report."""
    parser = CommandLine(prog="python -m analysis", description="Tables and a report of studies.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS_DIR")
    parser.add_argument("--baseline", metavar="ARM", help="arm to compare with")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: report in the one RESULTS_DIR"
    )
    options = parser.parse_args()
    if options.out is None and len(options.results) > 1:
        expected = "a folder, as the report of several studies replaces none of theirs"
        raise InputError("command line", "--out", None, expected)
    console = Console()
    analysis = Analysis.of(options.results, options.baseline)
    analysis.print(console)
    page = analysis.write(options.out or options.results[0] / "report")
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    exit_on_input_error(main)
