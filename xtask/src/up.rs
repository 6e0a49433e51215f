//! `cargo xtask up`: runs NATS, the Worker on workerd with its local KV, and the processor between them on this machine.
//!
//! This module only starts real programs and connects them. It imitates no part of the pipeline.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::processes::Processes;
use crate::progress::{say, seconds};
use crate::tools::{NpmTools, Workshop};
use crate::workspace::kv_namespace_id;
use crate::{http, run, wasm};

const NATS: u16 = 4222;

/// The options of `up`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Listen for NATS clients on this port
    #[arg(long, default_value_t = NATS, value_name = "PORT")]
    nats_port: u16,
    /// Serve the Worker's pages on this port
    #[arg(long, default_value_t = 8787, value_name = "PORT")]
    edge_port: u16,
    /// Serve the processor's health and metrics on this port
    #[arg(long, default_value_t = 3001, value_name = "PORT")]
    processor_port: u16,
    /// Keep the data of NATS and the KV in this folder [default: up/ in the target folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Let the Worker cache lists for this many seconds, as on Cloudflare; with 0, a published task appears at once
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    list_cache: u32,
}

/// The tools and programs that must exist before the first start.
struct Parts {
    nats_server: PathBuf,
    npm: NpmTools,
}

/// Builds and starts everything, prints the URLs, and stops everything at the end.
///
/// # Errors
/// If a port is taken, a part cannot be obtained or built, or a program does not come up.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    options.ports_are_free()?;
    let data = options.data.clone().unwrap_or_else(|| shop.workspace.target.join("up"));
    let data = std::path::absolute(&data).with_context(|| format!("cannot use {}", data.display()))?;
    let _lock = claim(&data)?;
    let config = shop.workspace.read("edge/wrangler.toml")?;
    let namespace = kv_namespace_id(&config, "TASKS_KV")
        .context("edge/wrangler.toml has no [[kv_namespaces]] with binding = \"TASKS_KV\" and an id")?;
    let parts = prepare(shop)?;

    let mut processes = Processes::new();
    start(shop, options, &parts, &data, namespace, &mut processes)?;
    say(options.summary(&shop.workspace.binary("taskpipeline"), &data));
    say(format_args!("ready in {}", seconds(started.elapsed())));
    let ended = processes.stream();
    shop.progress.line("stopping the processor, the Worker and NATS");
    processes.stop();
    ended.map(|()| ExitCode::SUCCESS)
}

/// Compiles the Worker and the processor side by side.
fn prepare(shop: &Workshop) -> Result<Parts> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| wasm::build(shop));
        let others = || {
            let parts = Parts { nats_server: shop.nats_server()?, npm: shop.npm_tools()? };
            shop.progress.step("build the processor (release)", || {
                run::output(&mut shop.workspace.build_processor_to_try())
            })?;
            Ok(parts)
        };
        let parts: Result<Parts> = others();
        worker.join().map_err(|_| anyhow!("the thread that builds the Worker panicked"))??;
        parts
    })
}

fn start(
    shop: &Workshop,
    options: &Options,
    parts: &Parts,
    data: &Path,
    namespace: &str,
    processes: &mut Processes,
) -> Result<()> {
    let (nats, edge, port) = (options.nats_port, options.edge_port, options.processor_port);
    shop.progress.step("start nats-server", || {
        let mut command = Command::new(&parts.nats_server);
        command.args(["--addr", "127.0.0.1", "--port", &nats.to_string(), "--jetstream", "--store_dir"]);
        processes.start("nats-server", command.arg(data.join("nats")))?;
        processes.wait_until("NATS answers", Duration::from_secs(20), || {
            http::greeting(nats).is_some_and(|line| line.starts_with("INFO "))
        })
    })?;
    shop.progress.step("start the Worker (wrangler dev)", || {
        processes.start("wrangler", &mut wrangler(shop, parts, options, data)?)?;
        processes.wait_until("the Worker's /health answers 200", Duration::from_secs(90), || {
            http::status(edge, "/health") == Some(200)
        })
    })?;
    shop.progress.step("start the processor", || {
        let mut command = Command::new(shop.workspace.binary("taskpipeline"));
        command
            .arg("run")
            .env("NATS_URL", format!("nats://127.0.0.1:{nats}"))
            .env("CF_API_BASE_URL", format!("http://127.0.0.1:{edge}/cdn-cgi/local/explorer/api"))
            .env("CF_ACCOUNT_ID", "")
            .env("CF_NAMESPACE_ID", namespace)
            .env("CF_API_TOKEN", "local")
            // As all programs here, the processor is for this machine only.
            .env("HOST", "127.0.0.1")
            .env("PORT", port.to_string())
            .env("LOG_FORMAT", "text")
            // The grace must be shorter than the time after which the processor is killed.
            .env("SHUTDOWN_GRACE", "10s");
        // Real credentials in this shell are not for the NATS that starts here.
        for name in
            ["CREDS", "USER", "PASSWORD", "TOKEN", "NKEY", "CA", "CERT", "KEY", "TLS_FIRST", "INBOX_PREFIX"]
        {
            command.env_remove(format!("NATS_{name}"));
        }
        processes.start("processor", &mut command)?;
        processes.wait_until("the processor's /readyz answers 200", Duration::from_secs(30), || {
            http::status(port, "/readyz") == Some(200)
        })
    })
}

fn wrangler(shop: &Workshop, parts: &Parts, options: &Options, data: &Path) -> Result<Command> {
    let mut command = Command::new(parts.npm.node());
    command
        .arg(parts.npm.wrangler())
        .args(["dev", "--ip", "127.0.0.1", "--port", &options.edge_port.to_string(), "--log-level", "warn"])
        // The port of the debugger could be taken, too.
        .args(["--inspector-port", "0", "--show-interactive-dev-session=false", "--persist-to"])
        .arg(data.join("kv"))
        .args(["--var", &format!("LIST_CACHE_SECONDS:{}", options.list_cache)])
        .current_dir(shop.workspace.edge())
        .env("PATH", run::path_with(&[parts.npm.node_folder()])?)
        .env("CARGO_TARGET_DIR", &shop.workspace.target)
        .env("CI", "1")
        .env("WRANGLER_SEND_METRICS", "false")
        .env("WRANGLER_LOG_PATH", data.join("wrangler-logs"))
        // The Worker does not need the location of this machine.
        .env("CLOUDFLARE_CF_FETCH_ENABLED", "false")
        // The store of traces grows, and halves the speed.
        .env("X_LOCAL_OBSERVABILITY", "false");
    Ok(command)
}

/// Allows one `up` for each data folder: two NATS servers in one store would corrupt it.
fn claim(data: &Path) -> Result<File> {
    fs::create_dir_all(data).with_context(|| format!("cannot create the data folder {}", data.display()))?;
    let path = data.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!(
            "another `cargo xtask up` uses the data in {}; choose another folder with `--data DIR`",
            data.display()
        );
    }
    Ok(file)
}

impl Options {
    fn ports_are_free(&self) -> Result<()> {
        let ports = [
            (self.nats_port, "--nats-port", "another nats-server"),
            (self.edge_port, "--edge-port", "another wrangler dev"),
            (self.processor_port, "--processor-port", "another processor, or a development server"),
        ];
        for (index, (port, flag, likely)) in ports.iter().enumerate() {
            if let Some((_, other, _)) = ports[..index].iter().find(|(earlier, ..)| earlier == port) {
                bail!("{flag} and {other} are both {port}; choose different ports");
            }
            if is_taken(*port) {
                bail!(
                    "port {port} is taken, most likely by {likely} or another `cargo xtask up`; \
                     stop that, or choose another port with `{flag} PORT`"
                );
            }
        }
        Ok(())
    }

    fn summary(&self, binary: &Path, data: &Path) -> String {
        let (nats, edge, processor) = (self.nats_port, self.edge_port, self.processor_port);
        let here = std::env::current_dir().unwrap_or_default();
        let binary = binary.strip_prefix(&here).unwrap_or(binary).display();
        let elsewhere =
            if nats == NATS { String::new() } else { format!("NATS_URL=nats://127.0.0.1:{nats} ") };
        format!(
            "
TaskPipeline is up.

  page       http://127.0.0.1:{edge}/
  API        http://127.0.0.1:{edge}/api/tasks
  processor  http://127.0.0.1:{processor}/health
  metrics    http://127.0.0.1:{processor}/metrics
  NATS       nats://127.0.0.1:{nats}
  data       {}

Try it in another terminal, then look at the page:

  {elsewhere}{binary} publish created --id task-1 --title \"My First Task\" \
   --description \"This is a test task\" --status pending

Ctrl-C stops everything.
",
            data.display()
        )
    }
}

/// Checks all addresses: macOS lets `0.0.0.0` and `127.0.0.1` share a port.
fn is_taken(port: u16) -> bool {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&local, Duration::from_millis(300)).is_ok()
        || TcpListener::bind(local).is_err()
        || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(nats_port: u16, edge_port: u16, processor_port: u16) -> Options {
        Options { nats_port, edge_port, processor_port, data: None, list_cache: 0 }
    }

    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = options(port, 1, 2).ports_are_free().unwrap_err().to_string();
        assert!(error.contains(&format!("port {port} is taken")) && error.contains("--nats-port"), "{error}");
    }

    #[test]
    fn one_port_for_two_is_refused() {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let error = options(free, free, 1).ports_are_free().unwrap_err().to_string();
        assert!(error.contains("--edge-port and --nats-port"), "{error}");
    }

    #[test]
    fn the_line_to_try_names_another_nats_only_when_it_is_another() {
        let summary = |nats| options(nats, 8787, 3001).summary(Path::new("/x/taskpipeline"), Path::new("/d"));
        assert!(summary(4222).contains("\n  /x/taskpipeline publish created --id task-1"));
        assert!(summary(4333).contains("\n  NATS_URL=nats://127.0.0.1:4333 /x/taskpipeline publish"));
    }
}
