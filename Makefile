# Two commands for a new user: `make demo` and `make test`. Nothing but Python >= 3.10 and make is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
BIN := .venv/bin

.PHONY: demo torchvision detection segmentation test slow check gpu torture companions nulls bench format schemas trt-names clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --editable '.[rtx]' || echo "tensorrt_rtx has no wheel for this machine: engines are not built here, and the tests that build one are skipped"
	touch $@

demo: .venv/installed ## trains checkpoints, then soup build, export --trt, verify (under 6 minutes on 2 cores)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/demo/run.py

torchvision: .venv/installed ## the same for two of torchvision's networks (about 5 minutes on 2 cores)
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/torchvision/run.sh

detection: .venv/installed ## the same for a detector, on scenes of digits or on DATA=a Pascal VOC folder (about 15 minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/detection/run.py $(if $(DATA),--data "$(DATA)")

segmentation: .venv/installed ## the same for masks (about 15 minutes on 2 cores)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/segmentation/run.py

test: .venv/installed ## the test suite (about 10 minutes on 2 cores)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not gpu and not slow"

slow: .venv/installed ## the tests that take minutes: killed builds, torchvision's releases, every family of detectors
	$(BIN)/python -m pytest -m "slow and not gpu"

gpu: .venv/installed ## the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu

check: .venv/installed ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

torture: .venv/installed ## 100 builds killed at random moments, each ended and compared byte for byte
	$(BIN)/python tools/torture.py

companions: .venv/installed ## the trtexec, polygraphy, DeepStream and Triton files, tried on the real tools (needs the network)
	$(BIN)/python tools/companions.py

nulls: .venv/installed ## how often the final verdict, and the search, are wrong where nothing is to be found
	$(BIN)/python -m benchmarks.nulls

bench: .venv/installed ## every benchmark, as the tables of the README (makes its checkpoints first: an hour, once)
	$(BIN)/python -m pip install --quiet '.[bench]'
	$(BIN)/python -m benchmarks

schemas: .venv/installed ## docs/schemas, from the records
	$(BIN)/python tools/schemas.py

trt-names: .venv/installed ## the table of TensorRT names, from the real wheels (needs gcc and the network)
	$(BIN)/python tools/tensorrt_names.py

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist demo-out torchvision-out detection-out segmentation-out bccd-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
