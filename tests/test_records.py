"""Trial records: what is written is read back, and what is broken is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from seld.errors import InputError
from seld.records import (
    Failure,
    StageUse,
    TrialRecord,
    read_record,
    read_study,
    trial_folder,
    trials_table,
    write_record,
)


def _record(trial_id: str = "scratch-1", **changes: object) -> TrialRecord:
    values: dict[str, object] = {
        "study": "variants",
        "trial_id": trial_id,
        "arm": "scratch",
        "seed": 1,
        "annotation_minutes": 2.0,
        "status": "finished",
        "metrics": {"seld_error": 0.5, "er20": 0.8, "f20": 0.3, "le_cd_deg": 40.0, "lr_cd": 0.6},
        "stages": [StageUse(name="finetune", key="k", computed=True, duration_s=3.0)],
        "parameters": {"pretrain.temperature": 0.1},
    }
    return TrialRecord(**(values | changes))  # type: ignore[arg-type]


def test_round_trip_and_table(tmp_path: Path) -> None:
    failure = Failure(
        kind="non_finite_loss",
        message="loss is not finite at step 3",
        traceback="Traceback",
        stage="pretrain",
        policy="not retried",
        attempts=1,
    )
    records = [_record(), _record("scratch-2", status="failed", failure=failure, metrics={})]
    for record in records:
        write_record(record, tmp_path)
    read = [read_record(trial_folder(tmp_path, record.trial_id)) for record in records]
    assert read == records
    table = trials_table(records)
    assert table["seld_error"].tolist()[0] == 0.5
    assert table["failure_kind"].tolist()[1] == "non_finite_loss"
    assert table["parameter.pretrain.temperature"].tolist() == [0.1, 0.1]


def test_a_failed_trial_must_say_why() -> None:
    with pytest.raises(InputError, match="failure"):
        _record(status="failed")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ('{"schema_version": 99}', "schema_version is 99, expected 1"),
        ('{"schema_version": 1, "color": 2}', "color"),
        ('{"schema_version": 1}', "missing .* required"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, content: str, message: str) -> None:
    broken = trial_folder(tmp_path, "broken")
    broken.mkdir(parents=True)
    (broken / "record.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_record(broken)


def test_a_study_that_lacks_fields_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"schema_version": 1}')
    with pytest.raises(InputError, match=r"study\.json: record .*missing"):
        read_study(tmp_path)
