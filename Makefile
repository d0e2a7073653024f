# make demo | test | check | ui | clean     each works as the first command on a fresh machine with Python 3.11
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DVC := .tools/dvc/.ready
OCR := .tools/ocr/.ready
EXECUTORCH := .tools/executorch/.ready
LITERT := .tools/litert/.ready
LABELSTUDIO := .tools/labelstudio/.ready
ORTWEB := .tools/onnxruntime-web/.ready
SHELL := /bin/bash

.PHONY: demo test check ui clean setup lock ocr formats labelstudio gallery screenshots peers audit
.DELETE_ON_ERROR:

setup: $(READY) $(DVC) $(OCR)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "Python 3.11 is needed; say where: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	@touch $@

# DVC brings omegaconf, which breaks Dagster's selections: an environment of its own, called as a program.
$(DVC): infra/dvc.lock $(READY)
	$(PYTHON) -m venv .tools/dvc
	.tools/dvc/bin/python -m pip install --quiet --disable-pip-version-check -r infra/dvc.lock
	ln -sf ../../.tools/dvc/bin/dvc $(BIN)/dvc
	@touch $@

# rapidocr brings omegaconf too; its models lie in its wheel. Photos' text is read by this environment's Python.
$(OCR): infra/ocr.lock
	$(PYTHON) -m venv .tools/ocr
	.tools/ocr/bin/python -m pip install --quiet --disable-pip-version-check -r infra/ocr.lock
	@touch $@

ocr: $(OCR)

# ExecuTorch brings omegaconf, LiteRT's converter pins its own torch: large, so only for who ships these formats.
$(EXECUTORCH): infra/executorch.lock
	$(PYTHON) -m venv .tools/executorch
	.tools/executorch/bin/python -m pip install --quiet --disable-pip-version-check -r infra/executorch.lock
	@touch $@

$(LITERT): infra/litert.lock
	$(PYTHON) -m venv .tools/litert
	.tools/litert/bin/python -m pip install --quiet --disable-pip-version-check -r infra/litert.lock
	@touch $@

formats: $(EXECUTORCH) $(LITERT)

# Label Studio's server, called as a program by `mm label serve` and the tests. By uv, in seconds instead of minutes,
# where uv finds the packages too. An empty database is made once: from it a server starts at once.
$(LABELSTUDIO): infra/labelstudio.lock
	rm -rf .tools/labelstudio
	$(PYTHON) -m venv .tools/labelstudio
	.tools/labelstudio/bin/python -m pip install --quiet --disable-pip-version-check $$(grep ^uv== $<)
	.tools/labelstudio/bin/uv pip install --quiet --python .tools/labelstudio/bin/python -r infra/labelstudio.lock \
	  || .tools/labelstudio/bin/python -m pip install --quiet --disable-pip-version-check -r infra/labelstudio.lock
	cd .tools/labelstudio && mkdir -p home prepared && env -i PATH="$$PWD/bin:/usr/bin:/bin" HOME="$$PWD/home" LANG=C.UTF-8 \
	  LABEL_STUDIO_BASE_DATA_DIR="$$PWD/prepared" COLLECT_ANALYTICS=false SENTRY_DSN= FRONTEND_SENTRY_DSN= \
	  LATEST_VERSION_CHECK=false label-studio init -q </dev/null >home/init.txt 2>&1 || { cat home/init.txt; exit 1; }
	rm -f .tools/labelstudio/prepared/.env
	@touch $@

labelstudio: $(LABELSTUDIO)

# The gallery's page runs the model in the browser: onnxruntime-web from npm, held to the digest in its lock.
$(ORTWEB): infra/onnxruntime-web.lock
	@command -v npm >/dev/null || { echo "npm is needed (Node.js) to fetch onnxruntime-web"; exit 2; }
	rm -rf .tools/onnxruntime-web && mkdir -p .tools/onnxruntime-web
	read -r name version digest < $<; cd .tools/onnxruntime-web && npm pack --silent "$$name@$$version" >/dev/null && \
	  [ "sha512-$$(openssl dgst -sha512 -binary *.tgz | openssl base64 -A)" = "$$digest" ] || \
	  { echo "onnxruntime-web is not the package that $< names"; exit 2; }
	cd .tools/onnxruntime-web && tar xzf *.tgz package/package.json package/dist/ort.wasm.min.mjs \
	  package/dist/ort-wasm-simd-threaded.mjs package/dist/ort-wasm-simd-threaded.wasm && rm *.tgz
	@touch $@

gallery: $(READY) $(ORTWEB)

# What benchmarks/ingest_throughput.py compares ingest with; FiftyOne's database comes as a wheel.
peers:
	for peer in peers fastdup; do $(PYTHON) -m venv .tools/$$peer && \
	  .tools/$$peer/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r infra/$$peer.lock || exit 1; done

demo: $(READY)
	$(BIN)/mm demo

test: $(READY) $(DVC) $(OCR) $(LABELSTUDIO) $(if $(shell command -v npm),$(ORTWEB))
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations=10

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_doors.py

# Known vulnerabilities of all that is pinned; asks the network, so it is no part of `check`.
AUDITED := audit dvc executorch fastdup k8s labelstudio litert ocr peers
audit: .tools/audit/.ready
	.tools/audit/bin/python infra/audit.py .tools/audit/bin/pip-audit requirements.lock $(AUDITED:%=infra/%.lock)

.tools/audit/.ready: infra/audit.lock
	$(PYTHON) -m venv .tools/audit
	.tools/audit/bin/python -m pip install --quiet --disable-pip-version-check -r infra/audit.lock
	@touch $@

ui: $(READY)
	$(BIN)/mm ui

# Pins everything that requirements.in brings; `+cpu` is cut so that a GPU machine takes its own build of torch.
lock: $(READY)
	$(BIN)/python -m pip install --quiet -r requirements.in
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock
	.tools/dvc/bin/python -m pip freeze > infra/dvc.lock
	.tools/ocr/bin/python -m pip freeze > infra/ocr.lock
	for tool in executorch litert labelstudio; do [ ! -x .tools/$$tool/bin/python ] || \
	  .tools/$$tool/bin/python -m pip freeze | sed 's/+cpu$$//' > infra/$$tool.lock; done

clean:
	rm -rf $(VENV) .tools data .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
