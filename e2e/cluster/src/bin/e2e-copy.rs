//! Copies the content of a folder into an empty one: for the snapshot of a volume, and back.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (from, to) = (arguments.next().context("no folder")?, arguments.next().context("no target folder")?);
    let empty = fs::read_dir(&to).with_context(|| format!("cannot read {to}"))?.next().is_none();
    ensure!(empty, "{to} is not empty");
    let files = copy(Path::new(&from), Path::new(&to))?;
    println!("{files} files");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target).with_context(|| format!("cannot create {}", target.display()))?;
            files += copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("cannot write {}", target.display()))?;
            files += 1;
        }
    }
    Ok(files)
}
