"""Sound event localization and detection: everything that is not orchestration, free of Ray."""
