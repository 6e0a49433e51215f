//! The folder outside the clone that contains the tools: one entry for each name and version.
//!
//! An entry is created beside its place, under a lock, and renamed when it is complete. So a broken or a second run
//! never sees half a tool. This module knows nothing about the tools.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

/// The cache folder.
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens `TASKPIPELINE_CACHE`, or the user's cache folder.
    pub(super) fn open() -> Result<Self> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = place(cfg!(target_os = "macos"), variable).ok_or_else(|| {
            anyhow!("no folder for the tools, because HOME is not set; set TASKPIPELINE_CACHE to a folder")
        })?;
        let root =
            std::path::absolute(&root).with_context(|| format!("cannot use {} as cache", root.display()))?;
        fs::create_dir_all(&root).with_context(|| {
            format!("cannot create the cache {}; set TASKPIPELINE_CACHE to another folder", root.display())
        })?;
        Ok(Self { root })
    }

    /// The folder of an entry; `None` if it does not exist.
    pub(super) fn get(&self, key: &str) -> Option<PathBuf> {
        Some(self.root.join(key)).filter(|entry| entry.is_dir())
    }

    /// Returns the folder of an entry; `make` fills a missing entry.
    ///
    /// `make` gets the folder to fill, and the folder's final path.
    pub(super) fn entry(&self, key: &str, make: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
        if let Some(entry) = self.get(key) {
            return Ok(entry);
        }
        let _lock = self.lock(key)?;
        if let Some(entry) = self.get(key) {
            return Ok(entry);
        }
        let entry = self.root.join(key);
        let partial = self.scratch(key)?;
        let made = make(&partial, &entry).and_then(|()| {
            fs::rename(&partial, &entry)
                .with_context(|| format!("cannot move {} into its place", entry.display()))
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&partial);
        }
        made.map(|()| entry)
    }

    /// Creates an empty folder for work on an entry. The caller holds the entry's lock.
    pub(super) fn scratch(&self, key: &str) -> Result<PathBuf> {
        let folder = self.root.join(format!(".{key}.partial"));
        let emptied = if folder.exists() { fs::remove_dir_all(&folder) } else { Ok(()) };
        emptied
            .and_then(|()| fs::create_dir_all(&folder))
            .with_context(|| format!("cannot create an empty folder {}", folder.display()))?;
        Ok(folder)
    }

    /// A folder for work that may continue after an interruption, such as the source of a build.
    pub(super) fn folder(&self, key: &str) -> Result<PathBuf> {
        let folder = self.root.join(key);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// Waits for the lock of an entry. The lock ends with the file, also if the process is killed.
    pub(super) fn lock(&self, key: &str) -> Result<File> {
        let path = self.root.join(format!(".{key}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

fn place(macos: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(named) = variable("TASKPIPELINE_CACHE") {
        return Some(named);
    }
    let caches = match variable("XDG_CACHE_HOME") {
        Some(folder) => folder,
        None => variable("HOME")?.join(if macos { "Library/Caches" } else { ".cache" }),
    };
    Some(caches.join("taskpipeline"))
}

/// The SHA-256 of a reader's content, in hexadecimal like in lists of sums.
///
/// # Errors
/// If reading fails.
pub(crate) fn hex_sha256(mut reader: impl Read) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            length => hash.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_the_cache() {
        let with = |set: &'static [(&str, &str)], macos| {
            place(macos, |name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(with(&[("HOME", "/h")], false), Some("/h/.cache/taskpipeline".into()));
        assert_eq!(with(&[("HOME", "/h")], true), Some("/h/Library/Caches/taskpipeline".into()));
        assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], false), Some("/x/taskpipeline".into()));
        assert_eq!(with(&[("HOME", "/h"), ("TASKPIPELINE_CACHE", "/t")], true), Some("/t".into()));
        assert_eq!(with(&[], false), None);
    }

    #[test]
    fn an_entry_is_made_once_and_only_when_complete() {
        let root = std::env::temp_dir().join(format!("taskpipeline-cache-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let cache = Cache { root: root.clone() };
        assert!(cache.entry("tool-1", |_, _| Err(anyhow!("no network"))).is_err());
        assert_eq!(cache.get("tool-1"), None);
        let make = |partial: &Path, _: &Path| Ok(fs::write(partial.join("tool"), "x")?);
        let entry = cache.entry("tool-1", make).unwrap();
        assert!(entry.join("tool").is_file());
        assert_eq!(cache.entry("tool-1", |_, _| Err(anyhow!("made twice"))).unwrap(), entry);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn sums_as_sha256sum_writes_them() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex_sha256(&b""[..]).unwrap(), empty);
    }
}
