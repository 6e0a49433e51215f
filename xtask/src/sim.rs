//! `cargo xtask sim`: runs only the simulator of Cloudflare KV, so that other software can be measured against it.
//!
//! This module builds and starts the simulator, which has its own options.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use signal_hook::consts::SIGINT;

use crate::tools::Workshop;
use crate::{interrupt, run};

/// The options of `sim`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Pass these options to the simulator, such as `--limit 0` or `--record-landings`; `-- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    simulator: Vec<String>,
}

/// Runs the simulator until a signal requests a stop.
///
/// # Errors
/// If the simulator cannot be built or started.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    shop.progress.step("build the simulator (release)", || {
        run::output(&mut shop.workspace.build(&["taskpipeline-simulator"]))
    })?;
    let mut command = Command::new(shop.workspace.binary("taskpipeline-simulator"));
    command.args(&options.simulator);
    let shown = run::describe(&command);
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let ended = run::wait(&mut child, &shown);
    // A signal is the ordinary end. A terminal's Ctrl-C may have reached the simulator first.
    let asked = interrupt::asked() || ended.as_ref().is_ok_and(|status| status.signal() == Some(SIGINT));
    if asked || ended?.success() { Ok(ExitCode::SUCCESS) } else { Ok(ExitCode::FAILURE) }
}
