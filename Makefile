# What people type. Each target sets up .venv first (.ci/setup-venv); nothing else is needed.
#
#   make demo ARGS='--seed 1'   a federation of real processes on this machine
#   make test                   what one machine can show; what CI runs: twenty minutes on two cores
#   make test-fast              unit tests: two minutes
#   make coverage               the same tests but the guests', traced
#   make test-fleet             the long tests; federations, faults, attacks and playbooks in systemd guests
#   make test-recordings        shapes of published recordings, from check to checkpoint
#   make test-processors        what computes, as other processors do it
#   make bench                  speed and memory as ratios; prints tables, asserts no time
#   make results                what helps a federation to learn, as tables in docs/results.md
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
export ZK0D_VENV := $(VENV)
export HF_HUB_OFFLINE ?= 1
# A shell of ROS sets PYTHONPATH; what that names must not come before the pinned packages.
unexport PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE := 1

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: venv
venv: ## Make .venv with the pinned packages
	@.ci/setup-venv

.PHONY: demo
demo: venv ## Run a whole federation here (ARGS='--rounds 3 --contributors 4 --seed 1 --policy act')
	@$(BIN)/zk0bot demo $(ARGS)

PYTEST := $(BIN)/python -m pytest --durations=10
# Tests of one group share what they need, in one of these processes. Many tests wait for other processes,
# so there are more of them than cores.
PARALLEL := -n 4 --dist loadgroup --no-loadscope-reorder

# Lint takes one core for a minute, which the tests do not always use.
.PHONY: test
test: venv ## Lint and run the tests
	@$(MAKE) --no-print-directory --jobs=2 lint tests

.PHONY: tests
tests: venv
	$(PYTEST) $(PARALLEL) -m "not guest and not long" $(ARGS)
	@echo "Left to make test-fleet: test-long $(GUEST_SUITES); to make test-soak: two hours of faults; to make test-air-gap: a version with all its packages."

.PHONY: test-fast
test-fast: venv ## Run the unit tests
	$(PYTEST) $(PARALLEL) -m "not slow and not guest" $(ARGS)

.PHONY: coverage
coverage: venv ## Run the tests and list lines that they do not reach
	$(BIN)/coverage erase
	$(PYTEST) $(PARALLEL) -m "not guest and not long" --cov --cov-report=term $(ARGS)

# Suites that boot systemd guests: each alone takes under an hour on two cores.
GUEST_SUITES := test-federation test-faults test-transfers test-attacks test-monitoring test-installer test-site test-roles
.PHONY: test-fleet
test-fleet: test-long $(GUEST_SUITES) ## Run the long tests and every suite with guests but test-air-gap and test-soak (root, podman)

.PHONY: test-long
test-long: venv ## Tests whose parts make test covers, too
	$(PYTEST) $(PARALLEL) -m "long and not guest" $(ARGS)

.PHONY: test-federation
test-federation: venv ## Guests: a federation of the units alone, and with Debian 13
	$(PYTEST) -m guest tests/guests/test_lab.py tests/guests/test_federation.py tests/guests/test_several.py tests/guests/test_owner.py tests/guests/test_authority.py tests/guests/test_policies.py tests/guests/test_debian13.py $(ARGS)

.PHONY: test-faults
test-faults: venv ## Guests: killed processes, reboots, cut networks, full disks, clocks that are set
	$(PYTEST) -m guest tests/guests/test_faults.py tests/guests/test_clock.py $(ARGS)

.PHONY: test-transfers
test-transfers: venv ## Guests: faults while weights and updates move, mirrors, differences, metered lines
	$(PYTEST) -m guest tests/guests/test_transfer_faults.py tests/guests/test_transfer_ways.py $(ARGS)

.PHONY: test-soak
test-soak: venv ## Guests: two hours of faults, one after the other (ZK0D_SOAK_SECONDS, ZK0D_SOAK_SEED)
	$(PYTEST) -s -m guest tests/guests/test_soak.py $(ARGS)

.PHONY: test-attacks
test-attacks: venv ## Guests: attacks of outsiders and of a bad node
	$(PYTEST) -m guest tests/guests/test_attacks.py $(ARGS)

.PHONY: test-monitoring
test-monitoring: venv ## Guests: alerts that fire and clear
	$(PYTEST) -m guest tests/guests/test_monitoring.py $(ARGS)

.PHONY: test-installer
test-installer: venv ## Guests: get-zk0bot.sh on bare machines
	$(PYTEST) -m guest tests/guests/test_installer.py tests/guests/test_user_unit.py $(ARGS)

.PHONY: test-site
test-site: venv ## Guests: playbooks from bare machines to a run, upgrade, backup, refusals, removal
	$(PYTEST) -m guest tests/fleet/test_site.py tests/fleet/test_untouched.py $(ARGS)

.PHONY: test-roles
test-roles: venv ## Guests: each role's Molecule scenarios
	$(PYTEST) -m guest tests/fleet/test_roles.py $(ARGS)

.PHONY: test-air-gap
test-air-gap: venv ## Guests without any index, from make release WHEELHOUSE=1 (fetches 4 GB, writes 20)
	$(PYTEST) -m packages tests/fleet/test_packages.py $(ARGS)

# By the kernels of a processor without AVX2, then of one without AVX-512, one thread and two.
.PHONY: test-processors
test-processors: venv ## Run computing tests with the kernels of other processors
	export ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1; $(COMPUTES)
	export ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2; $(COMPUTES)

COMPUTES = $(PYTEST) -n 2 -m "not long and not guest" \
  tests/learning tests/learner tests/simulation tests/federation tests/release tests/simulators $(ARGS)

.PHONY: test-newest-flower
test-newest-flower: ## Run tests/flower with Flower's newest release, in a copy of this checkout
	@.ci/test-newest flower $(ARGS)

.PHONY: test-newest-lerobot
test-newest-lerobot: ## Run the tests of recordings and training with LeRobot's newest release, in a copy
	@.ci/test-newest lerobot $(ARGS)

.PHONY: test-recordings
test-recordings: venv ## Check, convert and train on shapes of recordings (ZK0D_RECORDINGS=FOLDER adds yours)
	$(BIN)/python -m tests.recordings $(ARGS)

.PHONY: bench
bench: venv ## Measure speed and memory against peers (ARGS='step round memory')
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: results
results: venv ## Make the learning tables of docs/results.md (hours; ARGS='main --minutes 60' or --report)
	$(BIN)/python -m tests.bench.learning_results $(ARGS)

# Those in bin are Python, too.
SCRIPTS = $(shell git grep -lIE '^\#!/(usr/bin/env |bin/)(ba)?sh' -- ':!bin')
.PHONY: lint
lint: venv ## Check style, types, imports and shell scripts
	$(BIN)/ruff check --no-cache .  # whether an import is ours depends on other files, too
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/shfmt -i 2 -ci -d $(SCRIPTS)

.PHONY: format
format: venv ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/shfmt -i 2 -ci -w $(SCRIPTS)

.PHONY: constraints
constraints: venv ## Raise the pins in constraints.txt
	$(or $(shell command -v uv),$(VENV).tools/bin/uv) pip compile --quiet --universal --upgrade \
	  --python-version 3.12 --no-emit-index-url --generate-hashes --extra test --extra docs --extra release --extra fleet --extra simulation --extra sim --extra monitoring --extra wandb --extra lora \
	  pyproject.toml -o constraints.txt

.PHONY: release
release: ## Build dist/zk0d-VERSION/ (RELEASE_KEY=FILE signs, WHEELHOUSE=1 adds the packages)
	@.ci/make-release

.PHONY: release-check
release-check: ## Check whether this checkout can be released (ARGS=--quick leaves out the tests)
	@.ci/release-check $(ARGS)

.PHONY: docs
docs: venv ## Build site/ (RELEASE=dist/zk0d-VERSION serves that version, too)
	@.ci/make-docs

.PHONY: reference
reference: settings-page monitoring-files cli-page roles-pages reasons-table services-files recordings-tables ## Write every page that is made from the code

.PHONY: settings-page
settings-page: venv ## Write docs/settings.md from the settings' models
	$(BIN)/python -m zk0d.config.reference

.PHONY: recordings-tables
recordings-tables: venv ## Write docs/recordings.md's tables from the shapes and from what was kept
	$(BIN)/python -m tests.recordings.page

.PHONY: reasons-table
reasons-table: venv ## Write docs/architecture.md's table of reasons
	$(BIN)/python -m zk0d.record.reasons

.PHONY: services-files
services-files: venv ## Write the files made from the table of services
	$(BIN)/python -m zk0d.machine.roles

.PHONY: cli-page
cli-page: venv ## Write docs/cli.md from the verbs
	$(BIN)/python -m zk0d.cli.reference

.PHONY: roles-pages
roles-pages: venv ## Write the roles' READMEs from their argument_specs
	$(BIN)/python -m tests.fleet.readmes

.PHONY: monitoring-files
monitoring-files: venv ## Write docs/metrics.md, and the role's dashboards and rules
	$(BIN)/python -m zk0d.monitoring.reference

.PHONY: clean
clean: ## Remove the environment and the tools' files
	rm -rf site $(VENV) $(VENV).tools .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
