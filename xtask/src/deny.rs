//! `cargo xtask deny`: checks the crates in Cargo.lock, and those of wasm-bindgen's program, against deny.toml by cargo-deny.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::progress::say;
use crate::run;
use crate::tools::{WASM_BINDGEN, Workshop};

/// The checks that need no network.
const OFFLINE: [&str; 3] = ["bans", "licenses", "sources"];

/// Checks everything. cargo-deny looks up known flaws in a database on GitHub. If GitHub cannot be reached, a line
/// reports it and the other checks run.
///
/// # Errors
/// If cargo-deny cannot be installed, or finds something.
pub(crate) fn check(shop: &Workshop) -> Result<()> {
    let program = shop.cargo_deny()?;
    let deny = |package: &str, arguments: &[&str]| deny(shop, &program, package, arguments);
    let fetched = shop.progress.step("get the database of known flaws (RustSec)", || {
        run::output(&mut deny("", &["fetch", "db"])).map(drop)
    });
    let mut checks = OFFLINE.to_vec();
    match fetched {
        Ok(()) => checks.insert(0, "advisories"),
        Err(why) => {
            say(format_args!("known flaws are NOT checked: cannot get their database: {why:#}"));
        }
    }
    let arguments: Vec<&str> = ["check", "--hide-inclusion-graph"].into_iter().chain(checks).collect();
    run::output(&mut deny("", &arguments))?;
    run::output(&mut deny(WASM_BINDGEN, &arguments)).map(drop)
}

/// Builds the command for a package's folder. deny.toml is above it.
fn deny(shop: &Workshop, program: &Path, package: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["--all-features", "--locked"]).args(arguments);
    command.current_dir(shop.workspace.root.join(package));
    command
}
