# The Python environment is .venv; its commands set up the host (as root).
#   make lab [ARGS=--check]   set up, prove that kernels can be saved here, start JupyterLab
#   make test [ARGS=...]      set up, lint, run all tests (ARGS go to pytest)
#   make test-ui [ARGS=...]   only those of JupyterLab's part, in a headless browser
#   make lint                 ruff and mypy
#   make bench [ENGINE=docker] [ARGS=...]  measure saving and resuming (ARGS: --sizes 0,1 --docs)

PYTHON ?= python3
BIN := .venv/bin
# Node is .venv's as well.
JS := cd labextension && PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: lab test test-ui lint bench
.DELETE_ON_ERROR:

lab: .venv/.ready labextension/.ready
	@sh scripts/lab.sh $(ARGS)

test: .venv/.ready labextension/.ready
	@$(BIN)/jupyter-checkpoints setup
	@sh scripts/test-tools.sh
	@sh scripts/browser.sh
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest $(ARGS)

test-ui: .venv/.ready labextension/.ready
	@$(BIN)/jupyter-checkpoints setup
	@sh scripts/browser.sh
	$(BIN)/python -m pytest tests/ui $(ARGS)

lint: .venv/.ready labextension/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(JS) jlpm lint:check

bench: .venv/.ready
	@$(BIN)/jupyter-checkpoints setup
	$(BIN)/python -m benchmarks $(if $(ENGINE),--engine $(ENGINE)) $(ARGS)

# Made again when the dependencies change.
.venv/.ready: pyproject.toml scripts/venv.sh
	@PYTHON="$(PYTHON)" sh scripts/venv.sh
	@touch $@

# The part in the browser; made again when its sources change.
labextension/.ready: .venv/.ready labextension/package.json labextension/yarn.lock \
		$(wildcard labextension/src/*.* labextension/src/*/*.* labextension/style/*.* \
			labextension/schema/*.*) scripts/labextension.sh
	@sh scripts/labextension.sh
	@touch $@
