# make demo, make test: what each needs is set up first, in .venv, by plain pip.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
DEMO := $(VENV)/.installed-demo
RUN := $(VENV)/bin/python
EXTRAS := cpu,wandb,tensorboard,slurm,demo,report,text,probe,s3,docs,test

unexport PYTHONDONTWRITEBYTECODE  # with it, every start would compile anew

.PHONY: install demo test nightly coverage mutants lint docs docs-site audit clean

install: $(STAMP)

# Made once, and again when the package's metadata or the tested versions change. The demo needs no test tools. What the
# commands import is compiled, which halves the time of each start; compiling everything takes a minute and a half.
$(STAMP): EXTRA = $(EXTRAS)
$(DEMO): EXTRA = cpu,demo,report
$(STAMP) $(DEMO): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --no-compile -c constraints.txt torch torchvision
	$(VENV)/bin/pip install -q --no-compile -c constraints.txt -e '.[$(EXTRA)]'
	$(RUN) -c 'import dejavu_lit.evaluation.evaluate, dejavu_lit.report.figures, dejavu_lit.report.report, dejavu_lit.training.train'
	touch $@

demo: $(if $(wildcard $(STAMP)),$(STAMP),$(DEMO))
	$(RUN) mitigate.py experiment=demo

test: $(STAMP)
	$(RUN) -m pytest -n 2 --dist loadfile -m 'not slow'

nightly: $(STAMP)
	DEJAVU_FUZZ=10 $(RUN) -m pytest -n 2 --dist loadfile
	$(MAKE) coverage

# Branches of data/ and measure/. What numba compiles cannot be traced, so its test runs again as plain Python.
coverage: $(STAMP)
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest -m 'not slow' tests/data tests/measure tests/data/test_prepare.py tests/duplicates/test_dedup.py \
		tests/faults/test_corrupt_data.py tests/faults/test_shards.py tests/end_to_end/test_exclude.py
	NUMBA_DISABLE_JIT=1 $(VENV)/bin/coverage run -m pytest tests/measure/test_scores.py
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report --skip-covered

# Mutants of the definitions; those that cannot be told from the original are listed in docs/reliability.md.
mutants: $(STAMP)
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[mutants]'
	$(VENV)/bin/mutmut run
	$(VENV)/bin/mutmut results

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

docs: $(STAMP)
	$(RUN) .ci/reference.py

# The pages as a site, in build/site. They are copied as they lie in the checkout, so that their links need no second form.
docs-site: $(STAMP)
	rm -rf build/pages build/site
	mkdir -p build/pages
	cp README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md build/pages
	cp -r docs build/pages/docs
	$(RUN) .ci/tutorial.py page build/pages/docs
	$(VENV)/bin/zensical build --strict

# The pins agree with each other and with pyproject.toml; known weaknesses by ADVISORIES=all.zip, or by pip-audit and a network.
audit: $(STAMP)
	$(RUN) .ci/audit.py $(ADVISORIES)

clean:
	rm -rf $(VENV) build dist outputs mutants
