# make demo: install and certify the bundled images with the bundled model.
# make test: install with the test extras and run the tests.
# Other targets: make lint, make accuracy, make timing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The build of torch that needs no CUDA packages; with a GPU: make test CONSTRAINTS=
CONSTRAINTS ?= constraints-cpu.txt
CONSTRAIN := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test lint accuracy timing clean

demo: $(VENV)/.demo
	$(BIN)/lipdeploy predict samples --certify --model samples/model.onnx

test: $(VENV)/.test
	$(BIN)/python -m pytest --cov --cov-report=term

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typecheck
	$(PIP) --no-deps --target build/typecheck .
	cd build && MYPYPATH=typecheck ../$(BIN)/mypy --config-file ../pyproject.toml -p lipdeploy

# DATA: a folder with test/<class>/* images. MODEL: an engine with these classes.
DATA ?= data/cifar10-jpeg
MODEL ?= samples/model.onnx
accuracy: $(VENV)/.demo
	$(BIN)/lipdeploy predict $(DATA)/test --certify --json --model $(MODEL) \
	  | $(BIN)/python benchmarks/count_certified.py

timing: $(VENV)/.demo
	$(BIN)/python benchmarks/command_times.py $(BIN)/lipdeploy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(PIP) --editable '.[onnx]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) $(CONSTRAIN) --editable '.[test]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info
