//! `cargo xtask sim`: the simulator of Cloudflare KV alone, so that other software can be run and measured
//! against it. It builds and starts; what the simulator can be told is the simulator's own.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use signal_hook::consts::SIGINT;

use crate::tools::Workshop;
use crate::{interrupt, run};

/// What `sim` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The simulator's own options: `--limit 0`, `--record-landings`; `-- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    simulator: Vec<String>,
}

/// Runs it until somebody asks to stop.
///
/// # Errors
/// When it cannot be built or started.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    shop.progress.step("build the simulator (release)", || {
        run::output(&mut shop.workspace.build(&["taskpipeline-simulator"]))
    })?;
    let mut command = Command::new(shop.workspace.binary("taskpipeline-simulator"));
    command.args(&options.simulator);
    let shown = run::describe(&command);
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let ended = run::wait(&mut child, &shown);
    // Being asked to stop is how it ends; a terminal's Ctrl-C may have reached the simulator first.
    let asked = interrupt::asked() || ended.as_ref().is_ok_and(|status| status.signal() == Some(SIGINT));
    if asked || ended?.success() { Ok(ExitCode::SUCCESS) } else { Ok(ExitCode::FAILURE) }
}
