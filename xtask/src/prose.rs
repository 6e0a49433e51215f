//! `cargo xtask prose`: the docs against the house style in `.vale`, by Vale.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::progress::say;
use crate::run;
use crate::tools::Workshop;

/// Three sentences, each with one fault. Vale has to find them, so that a style that does not work is noticed.
const PLANTED: &str =
    "What comes first is read first.\n\nThe session begins anew.\n\nA message is no event.\n";

/// Checks all docs.
///
/// # Errors
/// If Vale cannot be installed, finds a fault, or does not find the planted faults.
pub(crate) fn check(shop: &Workshop) -> Result<()> {
    let vale = shop.vale()?;
    let root = &shop.workspace.root;
    let files = docs(root)?;
    ensure!(files.len() > 10, "the docs were not found");
    let folder = shop.workspace.target.join("prose");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let planted = folder.join("planted.md");
    std::fs::write(&planted, PLANTED).with_context(|| format!("cannot write {}", planted.display()))?;
    let (faults, _) = faults(root, &vale, &[planted])?;
    ensure!(faults == 3, "Vale found {faults} of 3 planted faults");
    let (faults, lines) = self::faults(root, &vale, &files)?;
    if faults > 0 {
        bail!("{faults} faults in the docs:\n{lines}");
    }
    say(format_args!("{} files without a fault; 3 of 3 planted faults found", files.len()));
    Ok(())
}

/// The Markdown files that git knows.
fn docs(root: &Path) -> Result<Vec<PathBuf>> {
    let mut list = Command::new("git");
    list.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.md"]).current_dir(root);
    let files = run::output(&mut list)?;
    Ok(files.split('\0').map(str::trim).filter(|file| !file.is_empty()).map(|file| root.join(file)).collect())
}

/// How many faults there are, and a line for each.
fn faults(root: &Path, vale: &Path, files: &[PathBuf]) -> Result<(usize, String)> {
    let mut command = Command::new(vale);
    command
        .arg("--config")
        .arg(root.join(".vale.ini"))
        .args(["--output", "line"])
        .args(files)
        .current_dir(root);
    let output = command.output().with_context(|| format!("cannot run {}", vale.display()))?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let faults = lines.lines().filter(|line| !line.trim().is_empty()).count();
    // With faults it ends with 1, with a broken style or configuration with 2.
    if !output.status.success() && faults == 0 {
        bail!("Vale failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok((faults, lines))
}
