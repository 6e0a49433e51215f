//! Handles on the real processes of tests: nats-server, the processor, and `cargo xtask up`. Each process is killed
//! when its handle is dropped.
//!
//! `cargo xtask test` passes the paths of the programs through the environment. A missing program is an error: no
//! test is skipped because of it.

mod bundled;
mod certificates;
mod chromium;
mod cluster;
mod events;
mod exposition;
pub mod forgery;
pub mod history;
mod load;
mod nats;
mod process;
mod processor;
mod raw_client;
mod slow_link;
mod up;
mod wait;

pub use bundled::BundledNats;
pub use certificates::Certificates;
pub use chromium::{Chromium, Tab, View};
pub use cluster::NatsCluster;
pub use events::{created, letter_payload, publish, publish_creates, stored_task};
pub use exposition::{Sample, samples, sum};
pub use load::store;
pub use nats::NatsServer;
pub use process::Process;
pub use processor::{Processor, ProcessorOptions};
pub use raw_client::{RawClient, UNREADABLE_HEADERS};
pub use slow_link::SlowLink;
pub use up::Up;
pub use wait::{eventually, within};

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, anyhow};

/// Returns an HTTP client for tests, and installs the crypto provider that reqwest needs.
#[must_use]
pub fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Returns a port that was free a moment ago.
///
/// # Errors
/// If the system has no free port.
pub fn free_port() -> anyhow::Result<u16> {
    let [port] = free_ports()?;
    Ok(port)
}

/// Returns free ports of this machine, all different.
///
/// They are below the range for outgoing connections. A port in that range could be taken while its server is down or starts.
///
/// # Errors
/// If not enough ports are free.
pub fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Test programs that run at the same time begin at different ports.
    let begin = std::process::id().wrapping_mul(7_919) % COUNT;
    let mut free = (0..COUNT)
        .map(|_| FIRST + (begin + TRIED.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let mut ports = [0; N];
    for port in &mut ports {
        *port = free.next().ok_or_else(|| anyhow!("no port from {FIRST} on is free"))?;
    }
    Ok(ports)
}

/// The folder for files that a person might want to see, such as screenshots.
///
/// # Errors
/// If the folder cannot be created.
pub fn output_dir() -> anyhow::Result<PathBuf> {
    let dir = std::env::var_os("TASKPIPELINE_TEST_OUTPUT")
        .map_or_else(|| std::env::temp_dir().join("taskpipeline-test-output"), PathBuf::from);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// Finds a program: by the variable that `cargo xtask test` sets, or on PATH under one of these names.
///
/// # Errors
/// If the program is not found.
pub fn program(variable: &str, names: &[&str]) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|dir| names.iter().map(move |name| dir.join(name)))
        .find(|file| file.is_file())
        .ok_or_else(|| anyhow!("{variable} is not set; run the tests by `cargo xtask test`, which sets it"))
}
