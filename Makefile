# Everything starts here, from a bare Python 3.11 or later: `make help` lists the targets.

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

VENV := .venv
BIN := $(VENV)/bin
# On a cluster the profile says how many cores a job gets: docs/clusters.md.
PROFILE ?= default
SNAKEMAKE := $(BIN)/snakemake --workflow-profile workflow/profiles/$(PROFILE) \
  $(if $(filter default,$(PROFILE)),--cores $(CORES))
LOCK := envs/requirements-dev.txt
BOOTSTRAP := envs/requirements-bootstrap.txt
LOCKS := requirements-bootstrap requirements requirements-dev requirements-peers
CODE := $(wildcard src tests workflow benchmarks)

# The stamp is named after what is installed, so that a new lock installs again.
LOCK_SHA := $(shell cat $(BOOTSTRAP) $(LOCK) pyproject.toml | (sha256sum 2>/dev/null || shasum -a 256) | cut -c1-12)
STAMP := $(VENV)/.installed-$(LOCK_SHA)

# Compiled programs are kept between runs; those that take less than 0.5 s are not worth it.
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.cache/jax
export JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS := 0.5
export MPLBACKEND := Agg
# Threads of BLAS that wait would take the cores from XLA: they cost a third of the speed.
export OPENBLAS_NUM_THREADS := 1
# Chunks share a GPU if there is one: none of them takes all of its memory.
export XLA_PYTHON_CLIENT_PREALLOCATE ?= false

.DELETE_ON_ERROR:
# Snakemake locks the folder: one run at a time.
.NOTPARALLEL:
.PHONY: browser benchmark benchmark-hsc benchmark-shallow benchmark-lsst benchmark-lsst-sim benchmark-throughput benchmark-report paper paper-smoke field field-scaling slurm multi real-pair benchmark-joint calibration-peers priors em-calibration calibration em em-oracle em-repair em-starts em-seeds em-contaminated em-other-basis em-real help install demo smoke real real-gaussian real-tiers test test-slow validate lint format lock clean distclean benchmark-hsc35 benchmark-large benchmark-mixture benchmark-speed

help:
	@echo 'demo       install what is needed into .venv, then simulate, infer and draw: results/quickstart/'
	@echo 'test       install, then the fast tests'
	@echo 'test-slow  the tests that take longer'
	@echo 'real       the same as demo with real HSC blends; BLENDEM_DATA names their folder'
	@echo 'real-gaussian  the same with the Gaussian prior, improved by EM from the blends'
	@echo 'real-tiers  latent and Gaussian tier on the same real blends, in a table'
	@echo 'smoke      the smallest runs through every rule: results/smoke/, smoke_em/, smoke_multi/,'
	@echo '           smoke_transient/, smoke_dust/, smoke_field/'
	@echo 'calibration  are the errors right? 1000 blends, about an hour: results/calibration/'
	@echo 'calibration-peers  the same blends by scarlet2, profiles and score MAP, after calibration'
	@echo 'benchmark  blendem, scarlet2, sep, photutils and no deblending on the same blends: results/benchmark/;'
	@echo '           a day with the defaults; BENCHMARK_FIELDS=6 BENCHMARK_LSST=6 BENCHMARK_PEER=2'
	@echo '           BENCHMARK_SPEED=100 BENCHMARK_SPEED_PEER=20: an hour'
	@echo 'em         what EM repairs: simulated blends, a wrong first prior, hours: results/em/'
	@echo 'em-repair  the part of it that starts from wrong and right simulations: an hour; the others are'
	@echo '           em-starts, em-seeds, em-contaminated and em-other-basis'
	@echo 'em-calibration  the checks of calibration with the prior that em refined'
	@echo 'em-real    EM on real HSC blends and HST stamps of BLENDEM_DATA: results/em_real/'
	@echo 'multi      HST beside HSC, correlated noise, offsets, dust: an hour, results/multi/'
	@echo 'real-pair  the part of it with real HST and HSC images of BLENDEM_DATA'
	@echo 'field      a patch of 4000 x 4000 pixels with more than 10000 sources, MAP and posteriors: results/field/'
	@echo '           field-scaling: the same with 100 and 1000 sources, and a figure'
	@echo 'paper      all figures and tables of the paper with their sums: hours, results/paper/; paper-smoke'
	@echo '           is the same with the smallest runs'
	@echo 'slurm      the workflow on a Slurm of one node, started for it; needs root and apt: results/slurm/'
	@echo 'browser    open the reports of all runs in headless Chromium; without it, needs root and apt'
	@echo 'priors     train the priors that are shipped again: priors/'
	@echo 'install    only .venv'
	@echo 'lint       check style and workflow;  format: apply the style'
	@echo 'lock       choose new versions from envs/*.in'
	@echo 'clean      remove results and caches;  distclean: .venv too'
	@echo 'Settings: CORES=$(CORES) PYTHON=$(PYTHON) PROFILE=$(PROFILE)'

install: $(STAMP)

# An install that was cut off leaves .installing behind and starts afresh. The stamp comes last.
$(STAMP):
	@if [ -e $(VENV)/.installing ]; then echo 'The last installation was cut off: starting again.'; rm -rf $(VENV); fi
	@if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	  command -v $(PYTHON) >/dev/null || \
	    { echo 'error: no $(PYTHON); install Python 3.11 or later, or name it: make PYTHON=/path/to/python'; exit 1; }; \
	  $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "error: blendem needs Python 3.11 or later, $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % v[:2])' || exit 1; \
	  $(PYTHON) -m venv --clear $(VENV) || \
	    { rm -rf $(VENV); echo 'error: $(PYTHON) -m venv failed; on Debian and Ubuntu install the package python3-venv'; exit 1; }; \
	fi
	@touch $(VENV)/.installing && rm -f $(VENV)/.installed-*
	@echo 'Installing $(LOCK) into $(VENV)'
	@if $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(BOOTSTRAP) \
	  && $(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r $(LOCK); then :; \
	else \
	  echo 'uv could not install; trying pip, which is slower'; \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(LOCK); \
	fi
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ && rm -f $(VENV)/.installing

demo: $(STAMP)
	$(SNAKEMAKE) --configfile config/quickstart.yaml
	@echo 'Results: results/quickstart/ (open report.html, figures/, catalog/; docs/formats.md explains them)'

smoke: $(STAMP)
	$(SNAKEMAKE) --configfile config/smoke.yaml
	$(SNAKEMAKE) --configfile config/smoke_em.yaml
	$(SNAKEMAKE) --configfile config/smoke_multi.yaml
	$(SNAKEMAKE) --configfile config/smoke_transient.yaml
	$(SNAKEMAKE) --configfile config/smoke_dust.yaml
	$(SNAKEMAKE) --configfile config/smoke_field.yaml

# Snakemake runs scripts in this folder, while paths in a table start from the table's: the
# variable is made absolute.
real: RUN := hsc_cosmos
real-gaussian: RUN := hsc_cosmos_gaussian
real real-gaussian: $(STAMP)
	@data=$${BLENDEM_DATA:-../shared/data}; \
	if [ ! -d "$$data" ]; then \
	  echo "error: no real data: BLENDEM_DATA is $${BLENDEM_DATA:-not set} and $$data is no folder; see config/hsc_cosmos.yaml"; \
	  exit 1; \
	fi; \
	export BLENDEM_DATA="$$(cd "$$data" && pwd)"; \
	$(SNAKEMAKE) --configfile config/$(RUN).yaml
	@echo 'Results: results/$(RUN)/'

# Two tiers on the same real blends, with the same basis.
real-tiers: real
	benchmarks/share_run.sh results/hsc_cosmos results/hsc_cosmos_start
	@export BLENDEM_DATA="$$(cd "$${BLENDEM_DATA:-../shared/data}" && pwd)"; \
	$(SNAKEMAKE) results/hsc_cosmos_start/summary.json --rerun-triggers mtime params \
		--configfile config/hsc_cosmos_start.yaml
	$(BIN)/python benchmarks/real_tiers.py results/hsc_cosmos results/hsc_cosmos_start

# Files of tests side by side: what one of them has compiled stays in its process.
PYTEST := $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile

# Tests compile much and compute little: without LLVM's optimizations they take three quarters of the time.
test: export XLA_FLAGS += --xla_backend_optimization_level=0
test: $(STAMP)
	$(PYTEST)

# Pytest ends with 5 where no test is marked slow.
test-slow: $(STAMP)
	$(PYTEST) -m slow || [ $$? -eq 5 ]

validate: $(STAMP)
	$(BIN)/python benchmarks/validate_gaussian.py

benchmark-mixture: $(STAMP)
	$(BIN)/python benchmarks/mixture.py

# More than 1000 blends under two tiers, then every check of the posteriors: an hour on two cores.
CALIBRATED := measure_0 measure_1

calibration: $(STAMP)
	$(SNAKEMAKE) $(CALIBRATED) --configfile config/calibration_latent.yaml
	benchmarks/share_run.sh results/calibration_latent results/calibration_gaussian
	$(SNAKEMAKE) $(CALIBRATED) --rerun-triggers mtime params \
		--configfile config/calibration_gaussian.yaml
	$(BIN)/python benchmarks/calibration.py --gaussian results/calibration_gaussian
	$(BIN)/python benchmarks/mixture.py --samplers exact main moment_matching \
		--out results/calibration/mixture.json
	$(BIN)/python benchmarks/collect.py results/calibration/summary.json results/calibration/mixture.json

# EM on simulated blends: from a wrong prior, from the right one, from the blends alone, with other
# seeds, beside undetected galaxies. Hours on two cores; every line of it can be
# made alone.
EM_PARTS := checked.json fields truth blends statistics em/split prior/basis.eqx
EM_SEEDS := 22 23

em: em-repair em-starts em-seeds em-contaminated em-other-basis
	$(BIN)/python benchmarks/em.py

em-oracle: $(STAMP)
	$(SNAKEMAKE) results/em_basis/prior/basis.eqx --configfile config/em_basis.yaml
	$(SNAKEMAKE) results/em_oracle/em/laps.csv --configfile config/em_oracle.yaml

em-repair em-starts: em-oracle
	for run in $(EM_RUNS); do \
	  benchmarks/share_run.sh results/em_oracle results/$$run $(EM_PARTS) && \
	  $(SNAKEMAKE) results/$$run/em/laps.csv results/$$run/figures/em_priors.png \
	    --rerun-triggers mtime params --configfile config/$$run.yaml || exit 1; \
	done
em-repair: EM_RUNS := em_repair em_idempotence
em-starts: EM_RUNS := em_map em_gaussian

# Other fields, other training stamps, other draws; the prior of the true galaxies is the same.
em-seeds: em-oracle
	for seed in $(EM_SEEDS); do \
	  $(SNAKEMAKE) results/em_oracle_$$seed/em/laps.csv --configfile config/em_oracle.yaml \
	    --config run=em_oracle_$$seed seed=$$seed 'prior={start: results/em_oracle/prior/00.eqx, basis: null}' && \
	  benchmarks/share_run.sh results/em_oracle_$$seed results/em_repair_$$seed $(EM_PARTS) && \
	  $(SNAKEMAKE) results/em_repair_$$seed/em/laps.csv --rerun-triggers mtime params \
	    --configfile config/em_repair.yaml --config run=em_repair_$$seed seed=$$seed || exit 1; \
	done

# The same fields without what nobody detects, with it, and with a sky that takes its mean.
em-contaminated: em-oracle
	$(SNAKEMAKE) results/em_clean/em/laps.csv --configfile config/em_contaminated.yaml \
	  --config run=em_clean 'simulate={undetected_limit: null}'
	$(SNAKEMAKE) results/em_contaminated/em/laps.csv --configfile config/em_contaminated.yaml
	$(SNAKEMAKE) results/em_contaminated_sky/em/laps.csv --configfile config/em_contaminated.yaml \
	  --config run=em_contaminated_sky 'infer={sky: flat}'

# The repair in another basis: of true galaxies instead of the broad population, twice as many modes.
em-other-basis: em-repair
	$(SNAKEMAKE) results/em_basis_true/prior/basis.eqx --configfile config/em_basis.yaml \
	  --config run=em_basis_true 'stamps={population: realistic}' 'prior={modes: 256}'
	benchmarks/share_run.sh results/em_oracle results/em_other_basis checked.json fields truth
	$(SNAKEMAKE) results/em_other_basis/em/laps.csv --rerun-triggers mtime params \
	  --configfile config/em_repair.yaml --config run=em_other_basis \
	  'prior={basis: results/em_basis_true/prior/basis.eqx, modes: 256}'

# The checks of `make calibration` with the prior that `make em` refined.
em-calibration: em-repair
	$(SNAKEMAKE) $(CALIBRATED) --configfile config/em_calibration.yaml
	$(BIN)/python benchmarks/calibration.py --latent results/em_calibration --out results/em_calibrated

# Several observations of one sky: noise and offsets, HST beside HSC, transients, dust. More than an
# hour on two cores.
MULTI := results/multi

multi: $(STAMP)
	$(BIN)/python benchmarks/multi.py
	$(SNAKEMAKE) results/hst_hsc/scores/sources.csv --configfile config/hst_hsc.yaml
	benchmarks/share_run.sh results/hst_hsc results/hsc_alone checked.json stamps \
	  prior/basis.eqx prior/00.eqx prior/00.csv
	$(SNAKEMAKE) results/hsc_alone/scores/sources.csv --rerun-triggers mtime \
	  --configfile config/hst_hsc.yaml --config run=hsc_alone 'simulate={also: []}' \
	  'frame={stamp: 97, bands: [g, r, i, z, y, f814w], pixel_scale: 0.05}'
	$(BIN)/python benchmarks/joint_pairs.py
	$(SNAKEMAKE) results/transient/scores/light_curves.csv \
	  results/transient/figures/light_curves.png --configfile config/transient.yaml
	$(BIN)/python benchmarks/transients.py
	$(BIN)/python benchmarks/dust.py
	@if [ -d "$${BLENDEM_DATA:-../shared/data}/hst_hsc_pair" ]; then $(MAKE) real-pair; else \
	  echo 'no real pair: BLENDEM_DATA names no folder with hst_hsc_pair/; left out'; fi
	echo '[]' > $(MULTI)/summary.json
	$(BIN)/python benchmarks/collect.py $(MULTI)/summary.json $(MULTI)/observations.json \
	  $(MULTI)/pairs.json $(MULTI)/transients.json $(MULTI)/dust.json \
	  $$(ls $(MULTI)/real_pair.json 2>/dev/null)

# Real HST and HSC images of one patch of sky, jointly and HSC alone, with the prior of the simulated pair. Files are
# checked once: alone, HSC lacks a band of the prior.
PAIR_PRIOR := results/hst_hsc/prior/00.eqx

real-pair: $(STAMP)
	$(BIN)/python benchmarks/hst_hsc_fields.py "$${BLENDEM_DATA:-../shared/data}/hst_hsc_pair" \
	  results/hst_hsc_fields
	$(SNAKEMAKE) $(PAIR_PRIOR) --rerun-triggers mtime params --configfile config/hst_hsc.yaml
	$(SNAKEMAKE) $(foreach made,scores/observations.csv figures/blends.png figures/field.png, \
	  results/hst_hsc_real/$(made)) --configfile config/hst_hsc_real.yaml \
	  --config 'prior={start: $(PAIR_PRIOR)}'
	for sources in alone known; do \
	  benchmarks/share_run.sh results/hst_hsc_real results/hsc_$${sources}_real checked.json \
	    prior/basis.eqx prior/00.eqx prior/00.csv && \
	  $(SNAKEMAKE) results/hsc_$${sources}_real/scores/observations.csv --rerun-triggers mtime \
	    --configfile config/hst_hsc_real.yaml --config run=hsc_$${sources}_real \
	    fields=results/hst_hsc_fields/$$sources.tsv 'prior={start: $(PAIR_PRIOR)}' || exit 1; \
	done
	$(BIN)/python benchmarks/real_pair.py

# Every report of the runs so far in headless Chromium, which this installs on Debian or Ubuntu.
browser: $(STAMP)
	tests/browser/install.sh
	$(BIN)/python -m tests.browser.run results/*/report.html

# Both cluster profiles on a real Slurm of one node, which this starts: root on Debian or Ubuntu.
slurm: $(STAMP)
	tests/slurm/cluster.sh install
	$(BIN)/python -m tests.slurm.run
	@echo 'Results: results/slurm/summary.json; docs/clusters.md says what is checked'

# The priors that are shipped, for `prior: shipped`.
priors: $(STAMP)
	$(SNAKEMAKE) results/prior_hsc/prior/00.eqx --configfile config/prior_hsc.yaml
	$(SNAKEMAKE) results/prior_hst/prior/00.eqx --configfile config/prior_hst.yaml
	$(BIN)/python -m blendem.io.ship results/prior_hsc/prior/00.eqx priors/hsc_grizy.eqx 'make priors'
	$(BIN)/python -m blendem.io.ship results/prior_hst/prior/00.eqx priors/hst_f814w.eqx 'make priors'

# EM on real HSC blends and HST stamps: some improve the prior, the others watch.
em-real: real
	benchmarks/share_run.sh results/hsc_cosmos results/em_hsc checked.json stamps \
	  prior/basis.eqx prior/00.eqx prior/00.csv blends statistics map
	@export BLENDEM_DATA="$$(cd "$${BLENDEM_DATA:-../shared/data}" && pwd)"; \
	$(SNAKEMAKE) results/em_hsc/em/laps.csv results/em_hsc/summary.json \
	  --rerun-triggers mtime params --configfile config/em_hsc.yaml
	$(BIN)/python benchmarks/hst_fields.py \
	  "$${BLENDEM_DATA:-../shared/data}/hst_stamps/hst_cosmos_stamps.fits" results/hst_fields
	$(SNAKEMAKE) results/em_hst/em/laps.csv results/em_hst/figures/em_priors.png \
	  --configfile config/em_hst.yaml
	$(SNAKEMAKE) results/em_hst_simulated/em/laps.csv results/em_hst_simulated/figures/em_priors.png \
	  --configfile config/em_hst_simulated.yaml
	$(BIN)/python benchmarks/em_real.py

# scarlet2 lives in its own environment, which holds blendem too: both are timed in one process.
PEERS := .venv-peers
PEERS_LOCK := envs/requirements-peers.txt
PEERS_SHA := $(shell cat $(PEERS_LOCK) pyproject.toml | (sha256sum 2>/dev/null || shasum -a 256) | cut -c1-12)
PEERS_STAMP := $(PEERS)/.installed-$(PEERS_SHA)

$(PEERS_STAMP): | $(STAMP)
	@echo 'Installing $(PEERS_LOCK) into $(PEERS)'
	@$(BIN)/python -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r $(BOOTSTRAP)
	@$(BIN)/uv pip install -q --python $(PEERS)/bin/python --require-hashes -r $(PEERS_LOCK)
	@$(PEERS)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# 100 blends of `make calibration` by scarlet2, Sersic profiles and score MAP too: 40 minutes.
FITTED := results/calibration_latent/peers

calibration-peers: $(PEERS_STAMP)
	@if [ ! -e results/calibration/summary.json ]; then \
	  echo 'error: no results/calibration/summary.json: run make calibration first'; exit 1; fi
	$(PEERS)/bin/python benchmarks/peer_scarlet2.py results/calibration_latent
	$(BIN)/python benchmarks/score_map_of_run.py results/calibration_latent \
	  --prior results/calibration_latent/prior/00.eqx --only $(FITTED)/scarlet2.h5
	$(BIN)/python benchmarks/profiles_of_run.py results/calibration_latent --only $(FITTED)/scarlet2.h5
	$(BIN)/python benchmarks/compare_methods.py results/calibration_latent \
	  --method latent=results/calibration_latent --method gaussian=results/calibration_gaussian \
	  --method score_map=$(FITTED)/score_map.h5 --method profiles=$(FITTED)/profiles.h5 \
	  --method scarlet2=$(FITTED)/scarlet2.h5
	$(BIN)/python benchmarks/collect.py results/calibration/summary.json $(FITTED)/comparison.json

# Every method on the same blends, HSC-like at three depths, at the density of LSST, and of another
# pipeline: a day on two cores with the defaults. Parts that are done stay: start it again with other
# numbers, or after a kill. scarlet2 is fitted to parts of 25 blends. BENCHMARK_EM is the path of a prior after EM.
BENCHMARK_FIELDS ?= 41
BENCHMARK_SHALLOW ?= $(BENCHMARK_FIELDS)
BENCHMARK_LSST ?= 40
BENCHMARK_PEER ?= 41
BENCHMARK_PEER_SHALLOW ?= $(BENCHMARK_PEER)
BENCHMARK_PEER_LSST ?= $(BENCHMARK_PEER)
BENCHMARK_PEER_SIM ?= 4
BENCHMARK_SIM ?= 100
BENCHMARK_SPEED ?= 1000
BENCHMARK_SPEED_PEER ?= $(BENCHMARK_SPEED)
BENCHMARK_EM ?=
MEASURED := measure_0 measure_1
BENCHED := results/benchmark_hsc
METHODS := BIN=$(BIN) PEERS=$(PEERS) benchmarks/methods_of_run.sh

# usage: $(call gaussian-too,RUN,CONFIG,SIMULATE): the Gaussian tier on the blends of a run.
gaussian-too = benchmarks/share_run.sh results/$(1) results/$(1)_gaussian && \
  benchmarks/share_run.sh results/$(1) results/$(1)_gaussian benchmarks/compute_statistics && \
  $(SNAKEMAKE) $(MEASURED) --rerun-triggers mtime params --configfile config/$(2).yaml \
    --config run=$(1)_gaussian 'prior={tier: gaussian}' $(3)

benchmark: benchmark-hsc benchmark-lsst benchmark-lsst-sim benchmark-throughput benchmark-shallow
	$(MAKE) benchmark-report

benchmark-hsc: $(PEERS_STAMP)
	$(SNAKEMAKE) $(MEASURED) fit_map_0 fit_map_1 --rerun-triggers mtime params \
	  --configfile config/benchmark_hsc.yaml --config 'simulate={n_fields: $(BENCHMARK_FIELDS)}'
	$(call gaussian-too,benchmark_hsc,benchmark_hsc,'simulate={n_fields: $(BENCHMARK_FIELDS)}')
	@if [ -n '$(BENCHMARK_EM)' ]; then \
	  benchmarks/share_run.sh $(BENCHED) $(BENCHED)_em checked.json fields truth && \
	  $(SNAKEMAKE) $(MEASURED) --rerun-triggers mtime params --configfile config/benchmark_hsc.yaml \
	    --config run=benchmark_hsc_em 'simulate={n_fields: $(BENCHMARK_FIELDS)}' \
	    'prior={start: $(BENCHMARK_EM)}' || exit 1; \
	fi
	$(METHODS) $(BENCHED) $(BENCHMARK_PEER) i latent=$(BENCHED) \
	  $(if $(BENCHMARK_EM),em=$(BENCHED)_em) gaussian=$(BENCHED)_gaussian

# The same sky with more noise, one and two magnitudes.
benchmark-shallow: benchmark-hsc
	for mag in 1 2; do \
	  run=benchmark_hsc_$$mag; \
	  simulate="simulate={n_fields: $(BENCHMARK_SHALLOW), epochs: [{mjd: 0, depth: -$$mag}]}"; \
	  benchmarks/share_run.sh $(BENCHED) results/$$run checked.json stamps prior/basis.eqx prior/00.eqx \
	    prior/00.csv && \
	  $(SNAKEMAKE) $(MEASURED) fit_map_0 fit_map_1 --rerun-triggers mtime params \
	    --configfile config/benchmark_hsc.yaml --config run=$$run "$$simulate" && \
	  $(call gaussian-too,$${run},benchmark_hsc,"$$simulate") && \
	  $(METHODS) results/$$run $(BENCHMARK_PEER_SHALLOW) i latent=results/$$run \
	    gaussian=results/$${run}_gaussian || exit 1; \
	done

benchmark-lsst: $(PEERS_STAMP)
	$(SNAKEMAKE) $(MEASURED) fit_map_0 fit_map_1 --rerun-triggers mtime params \
	  --configfile config/benchmark_lsst.yaml --config 'simulate={n_fields: $(BENCHMARK_LSST)}'
	$(call gaussian-too,benchmark_lsst,benchmark_lsst,'simulate={n_fields: $(BENCHMARK_LSST)}')
	$(METHODS) results/benchmark_lsst $(BENCHMARK_PEER_LSST) r latent=results/benchmark_lsst \
	  gaussian=results/benchmark_lsst_gaussian

benchmark-lsst-sim: benchmark-lsst
	@data="$${BLENDEM_DATA:-../shared/data}/lsst_sim_blends"; run=benchmark_lsst_sim; \
	if [ ! -d "$$data" ]; then \
	  echo 'no lsst_sim_blends/ in the folder that BLENDEM_DATA names: left out'; exit 0; \
	fi; \
	if [ ! -e results/$$run/fields.tsv ]; then \
	  $(BIN)/python benchmarks/lsst_sim_fields.py "$$data" results/$$run --max-blends $(BENCHMARK_SIM) || exit 1; \
	fi; \
	benchmarks/share_run.sh results/benchmark_lsst results/$$run stamps && \
	$(SNAKEMAKE) $(MEASURED) fit_map_0 fit_map_1 --rerun-triggers mtime params \
	  --configfile config/$$run.yaml && \
	$(call gaussian-too,$${run},$${run}) && \
	$(METHODS) results/$$run $(BENCHMARK_PEER_SIM) i latent=results/$$run \
	  gaussian=results/$${run}_gaussian

# Again only if the blends have changed: it takes hours with the defaults.
benchmark-throughput: benchmark-hsc
	@if [ results/benchmark/throughput.csv -nt $(BENCHED)/blends/0.h5 ]; then \
	  echo 'results/benchmark/throughput.csv is newer than the blends: kept'; \
	else \
	  $(PEERS)/bin/python benchmarks/throughput.py $(BENCHED) --blends $(BENCHMARK_SPEED) \
	    --peer $(BENCHMARK_SPEED_PEER); \
	fi

# Tables, figures, summary.json and the numbers of docs/benchmark.md from what there is.
benchmark-report: $(STAMP)
	$(BIN)/python benchmarks/benchmark_report.py --page docs/benchmark.md

benchmark-speed: $(PEERS_STAMP)
	$(PEERS)/bin/python benchmarks/speed.py results/calibration_latent

# A whole patch from its images to catalogs, MAP and posteriors, timed: under an hour on two cores.
FIELD := field
FIELD_SIDE := 4000
FIELD_RUN = --configfile config/field.yaml --config fields=results/$(FIELD)_images/fields.tsv
FIELD_MAP := prior={tier: gaussian, start: null, basis: priors/hsc_grizy.eqx}
# $(call timed,NAME,COMMAND): seconds of a command go to a line of seconds.tsv.
timed = begin=$$(date +%s) && $(2) && \
  printf '%s\t%s\n' $(1) $$(( $$(date +%s) - begin )) >> results/$(FIELD)/seconds.tsv

field: $(STAMP)
	mkdir -p results/$(FIELD)
	[ -e results/$(FIELD)_images/fields.tsv ] || \
	  $(BIN)/python benchmarks/field_images.py results/$(FIELD)_images --side $(FIELD_SIDE)
	$(call timed,shared,$(SNAKEMAKE) --until compute_statistics $(FIELD_RUN) run=$(FIELD))
	benchmarks/share_run.sh results/$(FIELD) results/$(FIELD)_map checked.json tiles blends statistics \
	  prior/basis.eqx benchmarks
	$(call timed,map,$(SNAKEMAKE) results/$(FIELD)_map/catalog/patch.fits --rerun-triggers mtime \
	  $(FIELD_RUN) run=$(FIELD)_map 'infer={samples: 8}' '$(FIELD_MAP)')
	$(call timed,posterior,$(SNAKEMAKE) results/$(FIELD)/catalog/patch.fits --rerun-triggers mtime \
	  $(FIELD_RUN) run=$(FIELD))
	if [ -e results/$(FIELD)/mosaic ]; then $(SNAKEMAKE) results/$(FIELD)/figures/mosaic.png \
	  --rerun-triggers mtime $(FIELD_RUN) run=$(FIELD); fi
	$(BIN)/python benchmarks/field.py results/$(FIELD) results/$(FIELD)_map \
	  --truth results/$(FIELD)_images/truth.csv

# The same with about 100 and 1000 sources, then time and memory by the number of sources.
field-scaling: field
	$(MAKE) field FIELD=field_100 FIELD_SIDE=380
	$(MAKE) field FIELD=field_1000 FIELD_SIDE=1180
	$(BIN)/python benchmarks/scaling.py results/field results/field_100 results/field_1000 results/field

benchmark-large: $(STAMP)
	$(BIN)/python benchmarks/large_sources.py

benchmark-joint: $(PEERS_STAMP)
	$(PEERS)/bin/python benchmarks/joint_gradient.py

benchmark-hsc35: $(PEERS_STAMP)
	$(PEERS)/bin/python benchmarks/hsc_cosmos_35.py

# Every figure and table, with an index of their sums: hours. Parts that are finished stay.
PAPER_PARTS := demo calibration benchmark field em-repair multi

paper: $(PAPER_PARTS)
	$(BIN)/python benchmarks/paper.py config/paper.tsv results/paper

# The same of the smallest runs; made again from the posteriors on, they must have the same sums.
paper-smoke: smoke
	$(BIN)/python benchmarks/paper.py config/paper_smoke.tsv results/paper_smoke
	$(SNAKEMAKE) --configfile config/smoke.yaml --forcerun sample_posterior
	$(SNAKEMAKE) --configfile config/smoke_field.yaml --forcerun sample_posterior
	$(BIN)/python benchmarks/paper.py config/paper_smoke.tsv results/paper_smoke --check

lint: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check -q $(CODE)
	$(BIN)/snakefmt --check Snakefile workflow
	$(SNAKEMAKE) --lint --configfile config/smoke.yaml

format: $(STAMP)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)
	$(BIN)/snakefmt Snakefile workflow

# No address of a package index may reach the files.
lock: $(STAMP)
	@for name in $(LOCKS); do \
	  $(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
	    envs/$$name.in -o envs/$$name.txt || exit 1; \
	  if grep -nE '(https?|file):' envs/$$name.txt; then \
	    echo "error: envs/$$name.txt records an address"; exit 1; fi; \
	done

clean:
	rm -rf results .snakemake .cache .pytest_cache .ruff_cache build dist
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) src/*.egg-info
