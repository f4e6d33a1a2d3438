# Everything a newcomer needs: `make grid` runs the demo study, `make test` all tests
# but those that `make soak` adds.
# Both build their own environment in .venv from constraints.txt.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: grid test fast-test soak check format clean

grid: .venv/.run-ready
	$(BIN)/python ablations/run_grid.py $(ARGS)

# Two at a time: the tests that start Ray, which mostly wait, beside all others.
test: .venv/.dev-ready
	$(BIN)/python -m pytest -n 2 $(ARGS)

fast-test: .venv/.dev-ready
	$(BIN)/python -m pytest -m "not slow and not ray" $(ARGS)

soak: .venv/.dev-ready
	$(BIN)/python -m pytest -m soak $(ARGS)

check: .venv/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A half-made environment would count as made the next time.
$(BIN)/python:
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	echo "needs Python 3.11 with venv; or: make PYTHON=/path/to/python3.11" >&2; exit 1; }

.venv/.run-ready: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.dev-ready: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ .venv/.run-ready

clean:
	rm -rf .venv build *.egg-info
