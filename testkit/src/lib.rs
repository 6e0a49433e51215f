//! Handles on the real processes that tests run against: nats-server, the processor, the whole of
//! `cargo xtask up`. Each is killed when its handle is dropped.
//!
//! Where the programs are is told by `cargo xtask test` through the environment. What is missing is an
//! error that says so: no test is skipped for want of a tool.

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

/// An HTTP client for tests. It also installs the crypto provider that reqwest asks for.
#[must_use]
pub fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// A port that was free a moment ago.
///
/// # Errors
/// Where the system has none.
pub fn free_port() -> anyhow::Result<u16> {
    let [port] = free_ports()?;
    Ok(port)
}

/// So many ports of this machine that nobody listens on, no two of them the same. They are below those that
/// the system gives to outgoing connections: one of these would take the port of a server that is down for a
/// moment, or has not come up yet.
///
/// # Errors
/// Where there are none.
pub fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Test programs that run at the same time begin at different ones.
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

/// Where a test may leave what a person might want to look at, such as screenshots.
///
/// # Errors
/// Where the folder cannot be made.
pub fn output_dir() -> anyhow::Result<PathBuf> {
    let dir = std::env::var_os("TASKPIPELINE_TEST_OUTPUT")
        .map_or_else(|| std::env::temp_dir().join("taskpipeline-test-output"), PathBuf::from);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// A program: where `cargo xtask test` says it is, else on PATH under one of these names.
///
/// # Errors
/// Where there is none.
pub fn program(variable: &str, names: &[&str]) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|dir| names.iter().map(move |name| dir.join(name)))
        .find(|file| file.is_file())
        .ok_or_else(|| anyhow!("{variable} is not set: run the tests by `cargo xtask test`, which sets it"))
}
