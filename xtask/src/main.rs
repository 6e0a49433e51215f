//! `cargo xtask`: installs the tools, and builds, runs and tests everything.
//!
//! This file has only the subcommands; each has its own module.

mod bench;
mod cluster;
mod compose;
mod deny;
mod e2e;
mod generate;
mod http;
mod images;
mod interrupt;
mod processes;
mod programs;
mod progress;
mod prose;
mod report;
mod run;
mod sim;
mod soak;
mod test;
mod tools;
mod up;
mod variants;
mod wasm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Install the tools, and build, run and test the task pipeline
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// Run the whole system on this machine: NATS, the processor, and the Worker with its local KV
    Up(up::Options),
    /// Run every check and every test that needs no cluster
    Test(test::Options),
    /// Test the operator and running pods on a real cluster
    E2e(e2e::Options),
    /// Keep a cluster for manual work: up, env, load, down
    Cluster(cluster::Options),
    /// Test docker-compose.yml with an engine: every service is restarted, killed and taken down
    ComposeTest(compose::Options),
    /// Play histories of faults and check their outcomes
    Soak(soak::Options),
    /// Run only the simulator of Cloudflare KV, to measure other software against it
    Sim(sim::Options),
    /// Run the benchmarks (`bench help` lists them)
    Bench(bench::Options),
    /// Check that the fault suite catches processors that are broken on purpose
    Variants(variants::Options),
    /// Check the crates for known flaws, licenses and sources
    Deny,
    /// Check the docs against the house style, by Vale
    Prose,
    /// Write the generated files: the CRD, the plain manifests, the chart's README
    Generate(generate::Options),
    /// Build the images that pods run
    Image(images::Options),
    /// Build the Worker into edge/build (wrangler calls this)
    Wasm,
    /// Install every tool and print its path
    Tools,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = interrupt::listen().and_then(|()| {
        let shop = tools::Workshop::open()?;
        match arguments.command {
            Subject::Up(options) => up::run(&shop, &options),
            Subject::Test(options) => test::run(&shop, &options),
            Subject::E2e(options) => e2e::run(&shop, &options),
            Subject::Cluster(options) => cluster::run(&shop, &options),
            Subject::ComposeTest(options) => compose::run(&shop, &options),
            Subject::Soak(options) => soak::run(&shop, &options),
            Subject::Sim(options) => sim::run(&shop, &options),
            Subject::Bench(options) => bench::run(&shop, &options),
            Subject::Variants(options) => variants::run(&shop, &options),
            Subject::Deny => deny::check(&shop).map(|()| ExitCode::SUCCESS),
            Subject::Prose => prose::check(&shop).map(|()| ExitCode::SUCCESS),
            Subject::Generate(options) => generate::run(&shop, &options),
            Subject::Image(options) => images::run(&shop, &options),
            Subject::Wasm => wasm::build(&shop).map(|_| ExitCode::SUCCESS),
            Subject::Tools => tools::list(&shop).map(|()| ExitCode::SUCCESS),
        }
    });
    outcome.unwrap_or_else(|error| {
        progress::complain(&error);
        ExitCode::FAILURE
    })
}
