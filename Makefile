# make demo: install and certify the bundled images with the bundled model.
# make test: install with the test extras and run the tests.
# make lint: ruff and mypy.
# make docs: write docs/commands.md and the pictures of docs/ anew, then the site into build/site.
# make report-pictures: draw docs/report-*.png anew in a browser (apt-get install chromium chromium-driver).
# By hand, because they take long: soundness, soundness-quick, crash-test, fuzz, evaluate, sandwich,
# corruptions, resume-check, timing, certify-timing, freeze-timing, engines-check, gpu-check, bench-quick, bench,
# bench-peers, bench-gpu, thin-products, bench-train, bench-train-quick, step-profile, study, head-gap (after
# study), recipes, install-check, cifar10, bundled-model.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The build of torch that needs no CUDA packages; with a GPU: make test CONSTRAINTS=
CONSTRAINTS ?= constraints-cpu.txt
CONSTRAIN := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test lint docs report-pictures soundness soundness-quick crash-test fuzz evaluate sandwich \
  corruptions resume-check timing certify-timing freeze-timing engines-check gpu-check bench bench-quick \
  bench-peers bench-gpu thin-products bench-train bench-train-quick step-profile study head-gap recipes \
  install-check cifar10 bundled-model clean

demo: $(VENV)/.demo
	$(BIN)/lipdeploy predict samples --certify --model samples/model.onnx

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --max-worker-restart 0 --cov --cov-report=term

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typecheck
	$(PIP) --no-deps --target build/typecheck .
	cd build && MYPYPATH=typecheck ../$(BIN)/mypy --config-file ../pyproject.toml -p lipdeploy

docs: $(VENV)/.test
	$(BIN)/python docs/make_commands.py > docs/commands.md
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python benchmarks/terminal_picture.py
	rm -rf build/site
	$(BIN)/python -m sphinx -W --keep-going -q -E -d build/doctrees docs build/site

# Attacks on certificates, checks of every bound, faults that the checks must find; the last line is
# one JSON object.
soundness: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m soundness

soundness-quick: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m soundness --quick

# 50 kills of a training run; about five minutes. PROCESSES=2: of one of two processes.
KILLS ?= 50
PROCESSES ?= 1
crash-test: $(VENV)/.test
	$(BIN)/python tests/crash.py --kills $(KILLS) --processes $(PROCESSES)

MINUTES ?= 10
fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzzing.py --minutes $(MINUTES)

# DATA: a folder with test/<class>/* images. MODEL: an engine or a model.pt with these classes.
DATA ?= data/cifar10-jpeg
MODEL ?= samples/model.onnx
evaluate: $(VENV)/.demo
	$(BIN)/lipdeploy evaluate $(MODEL) $(DATA)

# The pictures of a report in docs/, light and wide, dark and narrow; fails on what the browser says.
report-pictures: $(VENV)/.test
	$(PIP) selenium
	$(BIN)/lipdeploy evaluate $(MODEL) $(DATA) --report build/report.html
	$(BIN)/python benchmarks/report_pictures.py build/report.html

# Certified accuracy, attacks and what lies between; pictures in runs/sandwich.
# 8,000 images: some 40 minutes of CPU time; LIMIT=500 for fewer.
LIMIT ?= 1000000
sandwich: $(VENV)/.test
	$(BIN)/lipdeploy evaluate $(MODEL) $(DATA) --attack --radii 36/255,72/255,108/255 \
	  --limit $(LIMIT) --explain runs/sandwich

# 50,000 images evaluated twice, once killed in the middle; the last line is one JSON object.
resume-check: $(VENV)/.demo
	$(BIN)/python benchmarks/resume_check.py $(MODEL) $(DATA)

# Right and certified answers under nine corruptions in five severities; 46 answers an image.
corruptions: $(VENV)/.demo
	$(BIN)/lipdeploy evaluate $(MODEL) $(DATA) --corruptions --limit $(LIMIT)

timing: $(VENV)/.demo
	$(BIN)/python benchmarks/command_times.py $(BIN)/lipdeploy

# What certificates cost beside inference: MODEL and images as for evaluate.
certify-timing: $(VENV)/.demo
	$(BIN)/python benchmarks/certify_times.py $(MODEL) $(DATA)

# Weights in huge pages, for all that a benchmark compares; see docs/engines.md.
HUGE_PAGES = GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# Times and memory of an export, exponentials, proofs and emission apart: SHAPES="5x32 15x32".
freeze-timing: $(VENV)/.test
	$(BIN)/python benchmarks/freeze_times.py $(SHAPES)

# The engines beside PyTorch, a plain CNN and themselves: one network, one run. On an idle machine.
bench: $(VENV)/.test
	$(HUGE_PAGES) PYTHONPATH=benchmarks $(BIN)/python -m inference

# The centre alone; the last line is one JSON object.
bench-quick: $(VENV)/.test
	$(HUGE_PAGES) PYTHONPATH=benchmarks $(BIN)/python -m inference --quick

# What limits an engine with one image: libraries' products of the weights with one vector.
thin-products: $(VENV)/.test
	$(HUGE_PAGES) PYTHONPATH=benchmarks $(BIN)/python benchmarks/thin_products.py

# A training step beside the paper's, and what both reach; on an idle machine.
bench-train: $(VENV)/.test
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/training.py --data $(DATA)

# Steps alone; the last line is one JSON object.
bench-train-quick: $(VENV)/.test
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/training.py --quick

# Where a training step spends its time; on an idle machine.
step-profile: $(VENV)/.test
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/step_profile.py

# One choice at a time around a base network; about an hour.
study: $(VENV)/.test
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/study.py --data $(DATA)

# What the certificates of the heads of the study give away in feature space.
head-gap: $(VENV)/.test
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/head_gap.py --data $(DATA) runs/study/base-*.pt runs/study/mlp-*.pt

TRAINED ?= samples/model.pt

# The same for the engines that need an NVIDIA GPU, canary and throughput; builds its own environment.
gpu-check:
	rm -rf build/gpu && mkdir -p build && $(PYTHON) -m venv build/gpu
	. build/gpu/bin/activate && pip install '.[gpu,trt]'
	build/gpu/bin/pip install --quiet --editable '.[gpu,train]'
	PYTHONPATH=benchmarks build/gpu/bin/python benchmarks/gpu_check.py $(TRAINED) $(DATA)

# Every engine that can run here against float64, on a whole test set; the last line is JSON.
engines-check: $(VENV)/.test
	$(BIN)/python benchmarks/engines_check.py $(TRAINED) $(DATA)

# Beside other 1-Lipschitz libraries, in an environment of their own.
bench-peers:
	rm -rf build/peers && mkdir -p build && $(PYTHON) -m venv build/peers
	build/peers/bin/pip install --quiet $(CONSTRAIN) --editable '.[onnx,train,plot]'
	build/peers/bin/pip install --quiet $(CONSTRAIN) orthogonium==0.0.4 deel-torchlip==1.0.5
	$(HUGE_PAGES) PYTHONPATH=benchmarks build/peers/bin/python -m inference --peers

# On a machine with an NVIDIA GPU.
bench-gpu:
	rm -rf build/gpu && mkdir -p build && $(PYTHON) -m venv build/gpu
	build/gpu/bin/pip install --quiet --editable '.[gpu,train,plot]'
	PYTHONPATH=benchmarks build/gpu/bin/python benchmarks/gpu.py

# The README's ways of installing, each in an environment of its own.
install-check:
	rm -rf build/install && mkdir -p build
	$(PYTHON) -m venv build/install
	. build/install/bin/activate && pip install '.[onnx]'
	build/install/bin/lipdeploy predict samples/cat-0000.jpg --certify --model samples/model.onnx
	. build/install/bin/activate && PIP_CONSTRAINT=$(CONSTRAINTS) && export PIP_CONSTRAINT \
	  && pip install '.[onnx,train]'
	build/install/bin/lipdeploy inspect samples/model.pt
	. build/install/bin/activate && pip install '.[onnx,openvino]'
	build/install/bin/lipdeploy predict samples/cat-0000.jpg --certify --runtime openvino

# Gigabytes of CUDA packages and a GPU: pip install '.[gpu,train,cifar]', then hours of training.
cifar10:
	rm -rf build/gpu && mkdir -p build && $(PYTHON) -m venv build/gpu
	. build/gpu/bin/activate && pip install '.[gpu,train,cifar]'
	build/gpu/bin/lipdeploy train cifar10 --out runs/cifar10 --width 32 --epochs 20 \
	  --precision bfloat16
	build/gpu/bin/lipdeploy export runs/cifar10/model.pt --engine onnx
	build/gpu/bin/lipdeploy evaluate runs/cifar10/model.onnx cifar10

# Every recipe on a part of the images, then the table of what each reached; the times add up.
IMAGES ?= 5000
EPOCHS ?= 5
recipes: $(VENV)/.test
	$(BIN)/python benchmarks/recipes.py $(DATA) --images $(IMAGES) --epochs $(EPOCHS)

# About an hour on 2 cores.
bundled-model: $(VENV)/.test
	$(BIN)/lipdeploy train data/cifar10-jpeg --out runs/bundled --recipe bundled
	$(BIN)/lipdeploy export runs/bundled/model.pt

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
