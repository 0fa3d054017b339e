# make test: format, lint, types, tests.   make demo: the demo page.   Both set everything up by themselves, from the
# locked versions in requirements/.   make lock renews those; make test-newest tries what they would become.
# make test-oldest: the extension on the oldest versions that its WebUIs have (Python 3.10, Linux).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTHON310 ?= python3.10
VENV ?= .venv
OLDEST ?= .venv-oldest
OLDEST_TESTS ?= tests/settings tests/core tests/weights tests/identity tests/session tests/hosts tests/webui --ignore tests/webui/test_panel_browser.py
BIN = $(VENV)/bin
# nothing is resolved at set-up: every package stands in a lock, by version and hash
LOCKED = --quiet --no-deps --require-hashes

.PHONY: demo test test-oldest test-newest lock check format clean

test: $(VENV)/installed .venv-gradio3/installed .venv-gradio4/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q -n auto --dist loadfile $(PYTEST)

# what a WebUI reaches, without browsers and golden vectors
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -q -n auto --dist loadfile $(OLDEST_TESTS) $(PYTEST)

demo: $(VENV)/installed
	$(BIN)/python -m dp_adapter.demo --out out/demo $(DEMO)

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# $(call install,ENVIRONMENT,LOCK LOCK …)
install = $1/bin/pip install $(LOCKED) -r requirements/build.txt && \
	$1/bin/uv pip install $(LOCKED) --python $1/bin/python --no-build-isolation $(patsubst %,-r requirements/%.txt,$2)
site-packages = $1/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"

$(VENV)/installed: pyproject.toml requirements/build.txt requirements/dev.txt requirements/bare.txt requirements/torch.txt
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),dev bare)
	$(BIN)/pip install --quiet -r requirements/torch.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# the WebUIs' two gradios, for the panel's tests; torch and the like are lent to them
.venv-gradio%/installed: requirements/build.txt requirements/gradio%.txt $(VENV)/installed
	$(PYTHON) -m venv .venv-gradio$*
	$(call install,.venv-gradio$*,gradio$*)
	$(call site-packages,$(VENV)) > $$($(call site-packages,.venv-gradio$*))/lent.pth
	touch $@

$(OLDEST)/installed: requirements/build.txt requirements/oldest.txt requirements/bare.txt
	$(PYTHON310) -m venv $(OLDEST)
	$(call install,$(OLDEST),oldest bare)
	touch $@

# The locks, renewed from the files that people edit: pyproject.toml and requirements/*.in
COMPILE = .venv-lock/bin/uv pip compile --quiet --upgrade --generate-hashes --custom-compile-command "make lock"
lock: .venv-lock/installed
	$(COMPILE) --universal --python-version 3.10 requirements/build.in -o requirements/build.txt
	$(COMPILE) --universal --python-version 3.10 requirements/bare.in -o requirements/bare.txt --no-deps
	$(COMPILE) --universal --python-version 3.10 pyproject.toml --extra dev -c requirements/torch.txt -o requirements/dev.txt
	$(COMPILE) --universal --python-version 3.10 requirements/gradio3.in -o requirements/gradio3.txt
	$(COMPILE) --universal --python-version 3.10 requirements/gradio4.in -o requirements/gradio4.txt
	$(COMPILE) --python-platform x86_64-manylinux_2_28 --python-version 3.10 --resolution lowest-direct --no-config \
	  pyproject.toml requirements/oldest.in --extra generate -o requirements/oldest.txt

.venv-lock/installed: requirements/build.txt
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install $(LOCKED) -r requirements/build.txt
	touch $@
