"""From results on disk to tables, figures and one report; reads :mod:`seld.records` only."""

from analysis.report import print_summary, write_report

__all__ = ["print_summary", "write_report"]
