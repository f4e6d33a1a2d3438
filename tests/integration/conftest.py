"""The tiny study, run once for all tests that compare with it."""

from __future__ import annotations

import pytest

from tests.integration.tiny_study import Command, FinishedStudy, study_arguments, write_corpus


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """Runs it: about a minute."""
    folder = tmp_path_factory.mktemp("study")
    corpus = write_corpus(folder / "corpus")
    data, results = folder / "data", folder / "results"
    with Command(study_arguments(corpus, data, results), folder / "output.log") as command:
        output = command.finish()
    return FinishedStudy(corpus, data, results, output)
