"""The tiny study, run once for all tests that compare with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.tiny_study import Command, study_arguments, write_corpus


@dataclass(frozen=True)
class FinishedStudy:
    """A corpus, its shards, and the results of one uninterrupted run."""

    corpus: Path
    data: Path
    results: Path
    output: str

    def arguments(self, results: Path) -> list[str]:
        """The same study with its results elsewhere."""
        return study_arguments(self.corpus, self.data, results)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """Runs it: about a minute."""
    folder = tmp_path_factory.mktemp("study")
    corpus = write_corpus(folder / "corpus")
    data, results = folder / "data", folder / "results"
    with Command(study_arguments(corpus, data, results), folder / "output.log") as command:
        output = command.finish()
    return FinishedStudy(corpus, data, results, output)
