//! `cargo xtask bench`: builds the processor, the simulator and the peer, and runs the benchmarks.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::run;
use crate::tools::Workshop;

/// The options of `bench`.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Run one benchmark with its options, such as `--quick`, `--resume`, `run --only SCENARIO --system SYSTEM`,
    /// `ledger`, `report` or `help` [default: the full comparison]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    benchmark: Vec<String>,
}

/// Runs a benchmark.
///
/// # Errors
/// If a part cannot be obtained, built or started.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let arguments = whole(&options.benchmark);
    let nats_server = shop.nats_server()?;
    let peer = if wants_peer(&arguments) { Some(shop.peer()?) } else { None };
    shop.progress.step("build the processor and the benchmarks (release)", || {
        run::output(&mut shop.workspace.build(&["taskpipeline", "taskpipeline-bench"]))
    })?;
    let mut command = std::process::Command::new(shop.workspace.binary("taskpipeline-bench"));
    command
        .args(&arguments)
        .env("TASKPIPELINE_NATS_SERVER", nats_server)
        .env("TASKPIPELINE_BIN", shop.workspace.binary("taskpipeline"))
        .env("TASKPIPELINE_BENCH_RUNS", shop.workspace.target.join("bench"))
        .env("TASKPIPELINE_DOCS", shop.workspace.root.join("docs"));
    if let Some(peer) = peer {
        command.env("TASKPIPELINE_NODE", peer.node).env("TASKPIPELINE_PEER", peer.scripts);
    }
    let shown = run::describe(&command);
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let status = run::wait(&mut child, &shown)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds the default subcommand if the arguments name none.
fn whole(benchmark: &[String]) -> Vec<String> {
    let named = benchmark.first().is_some_and(|first| !first.starts_with('-') || first == "--help");
    let all = (!named).then(|| "all".to_owned());
    all.into_iter().chain(benchmark.iter().cloned()).collect()
}

/// Whether the peer takes part. The first build of the peer takes a while.
fn wants_peer(arguments: &[String]) -> bool {
    match arguments.first().map(String::as_str) {
        Some("all") => true,
        Some("run") => arguments.iter().any(|argument| argument.contains("peer")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn no_benchmark_means_all() {
        assert_eq!(whole(&[]), ["all"]);
        assert_eq!(whole(&words("--quick --resume")), ["all", "--quick", "--resume"]);
        assert_eq!(whole(&words("ledger --replicas 2")), ["ledger", "--replicas", "2"]);
    }

    #[test]
    fn the_peer_is_built_only_where_it_takes_part() {
        assert!(wants_peer(&words("all --quick")) && wants_peer(&words("run --only limit --system peer")));
        assert!(!wants_peer(&words("run --only limit")) && !wants_peer(&words("ledger")));
    }
}
