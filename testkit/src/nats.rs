//! A real nats-server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use async_nats::ConnectOptions;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{Process, eventually, free_ports, http, program};

/// A nats-server with JetStream on a free port of this machine, with its own data folder.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    port: u16,
    monitor: u16,
    extra: Vec<String>,
    routes: Option<Routes>,
    /// The configuration, which replaces arguments.
    configuration: Option<Configuration>,
    data: TempDir,
}

/// A configuration file, with the environment that the file refers to.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) environment: Vec<(String, String)>,
    /// The text of the file, with [`PORT`], [`MONITOR`] and [`DATA`] as placeholders of each server's own values.
    pub(crate) text: String,
    /// The account of the streams.
    pub(crate) account: &'static str,
    /// The login of the tests' own clients.
    pub(crate) login: Option<Login>,
}

/// A user and its password.
pub(crate) type Login = (&'static str, &'static str);

/// The account of clients without one.
pub(crate) const GLOBAL: &str = "$G";

/// The placeholder of the port for clients.
pub(crate) const PORT: &str = "@PORT@";
/// The placeholder of the port for monitoring.
pub(crate) const MONITOR: &str = "@MONITOR@";
/// The placeholder of the server's folder.
pub(crate) const DATA: &str = "@DATA@";

/// The routes by which a server finds the others of its cluster.
#[derive(Debug)]
pub(crate) struct Routes {
    /// The server's name in the cluster.
    pub(crate) name: String,
    /// The port for the other servers.
    pub(crate) port: u16,
    /// The addresses of all servers, separated by commas.
    pub(crate) all: String,
}

impl NatsServer {
    /// Starts a server and waits until it accepts connections.
    ///
    /// # Errors
    /// If nats-server is missing, or does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts a server with further arguments.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(extra: &[&str]) -> anyhow::Result<Self> {
        Self::launch(owned(extra), None, None).await
    }

    /// Starts a server that belongs to a cluster.
    pub(crate) async fn start_in(routes: Routes, extra: &[&str]) -> anyhow::Result<Self> {
        Self::launch(owned(extra), Some(routes), None).await
    }

    /// Starts a server with a configuration file.
    pub(crate) async fn start_configured(configuration: Configuration) -> anyhow::Result<Self> {
        Self::launch(Vec::new(), None, Some(configuration)).await
    }

    async fn launch(
        extra: Vec<String>,
        routes: Option<Routes>,
        configuration: Option<Configuration>,
    ) -> anyhow::Result<Self> {
        let data = TempDir::new()?;
        let [port, monitor] = free_ports()?;
        let process = match &configuration {
            Some(configuration) => configured(port, monitor, &data, configuration)?,
            None => spawn(port, monitor, &data, &extra, routes.as_ref())?,
        };
        let server = Self { process, port, monitor, extra, routes, configuration, data };
        server.answers().await?;
        Ok(server)
    }

    /// The URL of the monitoring endpoint.
    #[must_use]
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor)
    }

    /// The number of messages that the server has sent to the client of this name, by its monitoring endpoint.
    ///
    /// # Errors
    /// If the endpoint does not answer, or the client is unknown.
    pub async fn sent_to(&self, name: &str) -> anyhow::Result<u64> {
        let url = format!("{}/connz", self.monitor_url());
        let connections: Value = serde_json::from_str(&http().get(url).send().await?.text().await?)?;
        let connections = connections["connections"].as_array().context("no connections")?;
        let connection = connections.iter().find(|connection| connection["name"] == name);
        connection.and_then(|it| it["out_msgs"].as_u64()).with_context(|| format!("no client named {name}"))
    }

    /// Changes the further arguments for the next [`Self::restart`].
    pub fn set_arguments(&mut self, extra: &[&str]) {
        self.extra = owned(extra);
    }

    /// The URL of the server.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The login of the tests' own clients.
    #[must_use]
    pub(crate) fn login(&self) -> Option<Login> {
        self.configuration.as_ref().and_then(|configuration| configuration.login)
    }

    /// The port for clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connects a client.
    ///
    /// # Errors
    /// If the server does not accept the client.
    pub async fn client(&self) -> anyhow::Result<async_nats::Client> {
        let options = client_options(self.login());
        options.connect(self.url()).await.context("cannot connect to the test's nats-server")
    }

    /// Kills the server as a crash would, and waits until its process has ended.
    ///
    /// # Errors
    /// If the process does not end.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(Duration::from_secs(5)).await?;
        Ok(())
    }

    /// Ends the server in order, so that its files are complete, and waits until its process has ended.
    ///
    /// # Errors
    /// If the process does not end.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(Duration::from_secs(10)).await?;
        Ok(())
    }

    /// Stops the server by SIGSTOP, or continues it.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn pause(&self, paused: bool) -> anyhow::Result<()> {
        self.process.signal(if paused { Signal::SIGSTOP } else { Signal::SIGCONT })
    }

    /// The process of the server.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The folder of a stream's messages and consumers.
    #[must_use]
    pub fn stream_dir(&self, stream: &str) -> PathBuf {
        let account = self.configuration.as_ref().map_or(GLOBAL, |configuration| configuration.account);
        self.data.path().join("jetstream").join(account).join("streams").join(stream)
    }

    /// The server's last lines, for an error message.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.tail()
    }

    /// Starts the server again on the same port with the same data.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process = match &self.configuration {
            Some(configuration) => configured(self.port, self.monitor, &self.data, configuration)?,
            None => spawn(self.port, self.monitor, &self.data, &self.extra, self.routes.as_ref())?,
        };
        self.answers().await
    }

    async fn answers(&self) -> anyhow::Result<()> {
        eventually(Duration::from_secs(10), || async {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port))
                .await
                .map(drop)
                .with_context(|| format!("nats-server does not accept connections\n{}", self.process.tail()))
        })
        .await
    }
}

/// Returns the options of a client with this login.
pub(crate) fn client_options(login: Option<Login>) -> ConnectOptions {
    match login {
        Some((user, password)) => {
            ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        }
        None => ConnectOptions::new(),
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}

fn configured(
    port: u16,
    monitor: u16,
    data: &TempDir,
    configuration: &Configuration,
) -> anyhow::Result<Process> {
    let file = data.path().join("nats.conf");
    let text = configuration.text.replace(PORT, &port.to_string()).replace(MONITOR, &monitor.to_string());
    std::fs::write(&file, text.replace(DATA, &data.path().to_string_lossy()))?;
    let mut command = Command::new(program("TASKPIPELINE_NATS_SERVER", &["nats-server"])?);
    command.arg("--config").arg(file).envs(configuration.environment.iter().cloned());
    Process::spawn("nats-server", &mut command)
}

fn spawn(
    port: u16,
    monitor: u16,
    data: &TempDir,
    extra: &[String],
    routes: Option<&Routes>,
) -> anyhow::Result<Process> {
    let program = program("TASKPIPELINE_NATS_SERVER", &["nats-server"])?;
    let mut command = Command::new(program);
    if let Some(Routes { name, port, all }) = routes {
        let listen = format!("nats://127.0.0.1:{port}");
        command.args(["--server_name", name, "--cluster_name", "test", "--cluster", &listen]);
        command.args(["--routes", all]);
    }
    command.args(["--addr", "127.0.0.1", "--jetstream", "--port", &port.to_string()]);
    command.args(["--http_port", &monitor.to_string()]);
    command.arg("--store_dir").arg(data.path()).args(extra);
    Process::spawn("nats-server", &mut command)
}
