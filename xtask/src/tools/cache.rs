//! The folder outside the clone that holds the tools: one entry a name and version.
//!
//! An entry is made beside its place and renamed when it is complete, under a lock, so that a broken or a
//! second run never sees half a tool. Nothing here knows what a tool is.

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
    /// `TASKPIPELINE_CACHE`, else the user's cache folder.
    pub(super) fn open() -> Result<Self> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = place(cfg!(target_os = "macos"), variable).ok_or_else(|| {
            anyhow!("no place for the tools: set TASKPIPELINE_CACHE to a folder (HOME is not set)")
        })?;
        let root =
            std::path::absolute(&root).with_context(|| format!("cannot use {} as cache", root.display()))?;
        fs::create_dir_all(&root).with_context(|| {
            format!("cannot make the cache {}; TASKPIPELINE_CACHE names another", root.display())
        })?;
        Ok(Self { root })
    }

    /// The folder of an entry, if it is there.
    pub(super) fn get(&self, key: &str) -> Option<PathBuf> {
        Some(self.root.join(key)).filter(|entry| entry.is_dir())
    }

    /// The folder of an entry; `make` fills it when it is not there yet. It is told where to, and where that
    /// will lie in the end.
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
                .with_context(|| format!("cannot put {} into its place", entry.display()))
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&partial);
        }
        made.map(|()| entry)
    }

    /// An empty folder for work on an entry; whoever asks holds the entry's lock.
    pub(super) fn scratch(&self, key: &str) -> Result<PathBuf> {
        let folder = self.root.join(format!(".{key}.partial"));
        let emptied = if folder.exists() { fs::remove_dir_all(&folder) } else { Ok(()) };
        emptied
            .and_then(|()| fs::create_dir_all(&folder))
            .with_context(|| format!("cannot make an empty folder {}", folder.display()))?;
        Ok(folder)
    }

    /// A folder for work that may go on where it was left, such as the source of what is built.
    pub(super) fn folder(&self, key: &str) -> Result<PathBuf> {
        let folder = self.root.join(key);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// Waits for the lock of an entry; it ends with the file, also when the process is killed.
    pub(super) fn lock(&self, key: &str) -> Result<File> {
        let path = self.root.join(format!(".{key}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
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

/// The SHA-256 of what a reader gives, as its sums are written.
///
/// # Errors
/// When reading fails.
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
