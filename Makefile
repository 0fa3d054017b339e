# make test: format, lint, types, tests.   make demo: the demo page.   Both set everything up by themselves, from the
# locked versions in requirements/.   make lock: renews those.   make test-newest: tries what they would become.
# make test-oldest: what a WebUI reaches, on the oldest versions that one has (Python 3.10, Linux).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTHON310 ?= python3.10
VENV ?= .venv
OLDEST ?= .venv-oldest
LOCKS ?= requirements
# in about four minutes on two cores; OLDEST_TESTS=tests/hosts and so on runs what is left out
OLDEST_TESTS ?= tests/settings tests/core tests/weights tests/identity tests/session tests/webui \
	$(patsubst %,tests/hosts/%.py,attach/test_ldm rows/test_a1111_rows attach/test_forge attach/test_diffusers pipelines/test_load_pipeline) \
	$(patsubst %,--ignore tests/session/%.py,test_pulid test_saved test_saved_fused test_figures test_fused regions/test_init_faces) \
	$(patsubst %,--ignore tests/webui/%.py,panel/test_browser panel/test_build_panel results/test_finished_pictures)
BIN = $(VENV)/bin
# nothing is resolved at set-up: every package stands in a lock, by version and hash
LOCKED = --quiet --no-deps --require-hashes

# $(call install,ENVIRONMENT,LOCK LOCK …)
install = $1/bin/pip install $(LOCKED) -r $(LOCKS)/build.txt && \
	$1/bin/uv pip install $(LOCKED) --python $1/bin/python --no-build-isolation $(patsubst %,-r $(LOCKS)/%.txt,$2)
site-packages = $1/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"
gradio = $(abspath $(VENV)-gradio$1/bin/python)

.PHONY: demo test test-oldest test-newest lock format clean

# the tests run on all cores already
test test-oldest: export OMP_NUM_THREADS = 1

test: $(VENV)/installed $(VENV)-gradio3/installed $(VENV)-gradio4/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	DP_GRADIO3=$(call gradio,3) DP_GRADIO4=$(call gradio,4) $(BIN)/python -m pytest -q -n auto --dist loadfile $(PYTEST)

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -q -n auto --dist loadfile $(OLDEST_TESTS) $(PYTEST)

demo: $(VENV)/installed
	$(BIN)/python -m dp_adapter.demo --out out/demo $(DEMO)

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: pyproject.toml $(patsubst %,$(LOCKS)/%.txt,build dev bare) requirements/torch.txt
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),dev bare)
	$(BIN)/pip install --quiet -r requirements/torch.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# the WebUIs' two gradios, for the panel's tests; torch and the like are lent to them
$(VENV)-gradio%/installed: $(LOCKS)/build.txt $(LOCKS)/gradio%.txt $(VENV)/installed
	$(PYTHON) -m venv $(@D)
	$(call install,$(@D),gradio$*)
	$(call site-packages,$(VENV)) > $$($(call site-packages,$(@D)))/lent.pth
	touch $@

$(OLDEST)/installed: $(patsubst %,$(LOCKS)/%.txt,build oldest bare)
	$(PYTHON310) -m venv $(OLDEST)
	$(call install,$(OLDEST),oldest bare)
	touch $@

# The locks, renewed from the files that people edit: pyproject.toml and requirements/*.in
COMPILE = .venv-lock/bin/uv pip compile --quiet --upgrade --generate-hashes --custom-compile-command "make lock"
UNIVERSAL = $(COMPILE) --universal --python-version 3.10
lock: .venv-lock/installed
	mkdir -p $(LOCKS)
	$(UNIVERSAL) requirements/build.in -o $(LOCKS)/build.txt
	$(UNIVERSAL) requirements/bare.in -o $(LOCKS)/bare.txt --no-deps
	$(UNIVERSAL) pyproject.toml --extra dev -c requirements/torch.txt -o $(LOCKS)/dev.txt
	$(UNIVERSAL) requirements/gradio3.in -o $(LOCKS)/gradio3.txt
	$(UNIVERSAL) requirements/gradio4.in -o $(LOCKS)/gradio4.txt
	$(COMPILE) --no-config --python-platform x86_64-manylinux_2_28 --python-version 3.10 --resolution lowest-direct \
	  pyproject.toml requirements/oldest.in --extra generate -o $(LOCKS)/oldest.txt

.venv-lock/installed: requirements/build.txt
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install $(LOCKED) -r requirements/build.txt
	touch $@

# what would change, then the tests on it; the locks stay as they are
test-newest:
	$(MAKE) lock LOCKS=out/newest
	-diff --ignore-matching-lines='--hash\|#' requirements/dev.txt out/newest/dev.txt
	$(MAKE) test VENV=.venv-newest LOCKS=out/newest

clean:
	rm -rf $(VENV) $(VENV)-gradio3 $(VENV)-gradio4 .venv-oldest .venv-newest* .venv-lock out .pytest_cache .ruff_cache
