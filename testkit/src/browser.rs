//! A real browser, for looking at pages.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{Process, output_dir, program};

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The window's width in pixels.
    pub width: u32,
    /// The window's height in pixels.
    pub height: u32,
    /// Whether the person prefers dark pages.
    pub dark: bool,
}

impl View {
    /// A laptop, light.
    pub const LIGHT: Self = Self { width: 1280, height: 800, dark: false };
    /// A laptop, dark.
    pub const DARK: Self = Self { dark: true, ..Self::LIGHT };
    /// A phone, light. (Chromium's window is at least 500 pixels wide.)
    pub const NARROW: Self = Self { width: 500, ..Self::LIGHT };
}

/// Takes a picture of a page and leaves it as `NAME.png` among the test's output.
///
/// # Errors
/// Where there is no browser, or it takes no picture.
pub async fn screenshot(url: &str, name: &str, view: View) -> anyhow::Result<PathBuf> {
    let file = output_dir()?.join(format!("{name}.png"));
    let _ = std::fs::remove_file(&file);
    let profile = TempDir::new()?;
    let mut command = Command::new(program(
        "TASKPIPELINE_CHROMIUM",
        &["chromium", "chromium-browser", "google-chrome", "chrome-headless-shell"],
    )?);
    command.args(["--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]);
    // Root has no sandbox to offer, and the only pages it sees here are our own.
    command.arg("--no-sandbox");
    // Nothing but the page: no updates, no metrics, no look-ups.
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("--window-size={},{}", view.width, view.height));
    // Blink's own names for the preference: 0 is dark, 1 is light.
    command.arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!view.dark)));
    command.arg(format!("--screenshot={}", file.display())).arg(url);
    let mut browser = Process::spawn("chromium", &mut command)?;
    browser.wait(Duration::from_secs(60)).await?;
    ensure!(is_png(&file)?, "no picture of {url}\n{}", browser.tail());
    Ok(file)
}

fn is_png(file: &Path) -> anyhow::Result<bool> {
    let bytes = std::fs::read(file).with_context(|| format!("no file {}", file.display()))?;
    Ok(bytes.starts_with(b"\x89PNG") && bytes.len() > 5_000)
}
