# The few verbs of this project. Each is a script that can be read and run by itself.

.PHONY: bench-model bench-operator bench-job help demo demo-down demo-model bench-train deps test lint format generate images cluster-up cluster-down kubectl load bench-router bench-worker

local = cargo run --quiet --locked --package tests --bin cluster -- $(if $(CLUSTER_NAME),--name=$(CLUSTER_NAME))

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## From nothing to a streamed answer about an image; CLUSTER=current for your own cluster
	@hack/demo

demo-down: ## Remove what the demo made
	@hack/demo down

demo-model: ## Train models/llava-shapes from nothing; continues where it was interrupted
	@hack/demo-model

deps: ## Install what the tests need and this machine lacks
	@hack/deps

test: ## Run every check of the project; continuous integration runs this and nothing else
	@hack/test

lint: ## rustfmt and clippy, warnings as errors
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings

format: ## Format the sources
	cargo fmt --all

generate: ## Write the CRDs and their reference page again
	cargo run --locked --package crds --bin crdgen

images: ## Build the images into target/images
	@hack/images

cluster-up: ## Start a local Kubernetes that stays; ARGS=--fake-nodes=N for nodes without containers, CLUSTER_NAME=… for a second one
	@cargo build --locked --package tests --bin cluster
	@$(local) up $(or $(ARGS),--real-node)

cluster-down: ## End it, and clear up after clusters whose owner is dead
	@$(local) down

kubectl: ## Run kubectl on it: make kubectl ARGS='get pods -A'
	@$(local) kubectl $(ARGS)

load: images ## Build the images and load them into it
	@$(local) load $(or $(CARGO_TARGET_DIR),target)/images/llava-*.tar

bench-operator: ## Measure the operator beside Kubernetes' own controllers (ARGS='--deployments=40'); docs/benchmarks.md shows the last result
	cargo build --locked --release --package llava-operator
	cargo build --locked --package tests --bins
	cargo run --quiet --locked --package tests --bin bench-operator -- --operator $(or $(CARGO_TARGET_DIR),target)/release/llava-operator $(ARGS)

bench-job: images ## Measure the main job on a real node; docs/benchmarks/job.md shows the last result
	cargo build --quiet --locked --package tests --bins
	cargo run --quiet --locked --package tests --bin bench-job -- $(ARGS)

bench-worker: ## Measure serving: batching, first tokens, callers that leave, overload; docs/benchmarks/worker.md shows the last result
	@hack/bench-worker $(ARGS)

bench-router: ## Measure the router against a bare pass-through and its peers
	@hack/bench-router $(ARGS)

bench-train: ## Measure training beside PyTorch on the demo model
	@hack/bench-train $(ARGS)

bench-model: ## Measure vision, prefill, decode and memory of a 1.1 B model beside transformers; docs/benchmarks/model.md shows the last result
	@hack/bench-model $(ARGS)
