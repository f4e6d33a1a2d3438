"""From results on disk to tables, figures and one report; reads :mod:`seld.records` only."""

from analysis.report import Analysis

__all__ = ["Analysis"]
