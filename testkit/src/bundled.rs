//! nats-servers with the configuration and the logins of the chart, read from `manifests/`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use async_nats::ConnectOptions;

use crate::cluster::meta_leader;
use crate::nats::{Configuration, DATA, GLOBAL, Login, MONITOR, PORT};
use crate::{NatsCluster, NatsServer, ProcessorOptions, RawClient, free_ports};

/// A password with every character that has a meaning in the server's configuration, except the one that the values exclude.
const PASSWORD: &str = r#"0 "\$PATH#{x}[y];(//)="#;

/// The inbox prefix of the processor's login.
const INBOX: &str = "_INBOX_PROCESSOR";

/// The account of the streams in the chart.
const ACCOUNT: &str = "taskpipeline";

/// A login that may do everything in that account, for tests that inspect streams, and sometimes destroy them.
const HARNESS: Login = ("harness", "harness");

/// One or three servers with the chart's configuration.
#[derive(Debug)]
pub struct BundledNats {
    nodes: Vec<NatsServer>,
}

impl BundledNats {
    /// Starts one server.
    ///
    /// # Errors
    /// If the manifest has no configuration, or the server does not come up with it.
    pub async fn start() -> anyhow::Result<Self> {
        Ok(Self { nodes: vec![one(None).await?] })
    }

    /// Starts one server on which the tests' own clients may do everything with the streams.
    pub(crate) async fn overseen() -> anyhow::Result<NatsServer> {
        one(Some(HARNESS)).await
    }

    /// Starts three such servers.
    pub(crate) async fn overseen_three() -> anyhow::Result<NatsCluster> {
        NatsCluster::of(three(Some(HARNESS)).await?).await
    }

    /// Starts one server with a second producer, `other`, as the chart configures each of `nats.auth.producers`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with_two_producers() -> anyhow::Result<Self> {
        let text = configuration(&manifests().join("nats/nats.yaml"))?;
        let (_, account) = text
            .split_once("\n      producer {\n")
            .context("the configuration has no account of a producer")?;
        let (account, _) =
            account.split_once("\n      }\n").context("the account of the producer has no end")?;
        let account = account.replace("user: producer", "user: other");
        let text = text.replace(r#"accounts: ["producer"]"#, r#"accounts: ["producer", "other"]"#);
        let text = text.replacen(
            "\n      producer {\n",
            &format!("\n      other {{\n{account}\n      }}\n      producer {{\n"),
            1,
        );
        let configuration = Configuration {
            environment: environment("bundled", &[]),
            text: here(&text, None)?,
            account: ACCOUNT,
            login: None,
        };
        Ok(Self { nodes: vec![NatsServer::start_configured(configuration).await?] })
    }

    /// Starts three servers that form a cluster.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_three() -> anyhow::Result<Self> {
        let nodes = three(None).await?;
        meta_leader(&nodes).await?;
        Ok(Self { nodes })
    }

    /// Starts one server with this configuration in place of the chart's. Addresses and folder are added to it.
    ///
    /// # Errors
    /// If the server does not come up.
    pub async fn start_as(configuration: &str) -> anyhow::Result<Self> {
        let own = format!(
            "listen: 127.0.0.1:{PORT}\nhttp: 127.0.0.1:{MONITOR}\njetstream {{ store_dir: \"{DATA}\" }}"
        );
        let text = format!("{own}\n{configuration}");
        let environment = environment("external", &[]);
        let configuration = Configuration { environment, text, account: GLOBAL, login: None };
        Ok(Self { nodes: vec![NatsServer::start_configured(configuration).await?] })
    }

    /// The servers.
    #[must_use]
    pub fn nodes(&self) -> &[NatsServer] {
        &self.nodes
    }

    /// Returns one of the servers.
    pub fn node_mut(&mut self, n: usize) -> Option<&mut NatsServer> {
        self.nodes.get_mut(n)
    }

    /// Points a replica at the servers, with the processor's login.
    #[must_use]
    pub fn serves(&self, options: ProcessorOptions) -> ProcessorOptions {
        let urls: Vec<_> = self.nodes.iter().map(NatsServer::url).collect();
        let options = options.set("NATS_URL", &urls.join(","));
        logged_in(options).set("STREAM_REPLICAS", &self.nodes.len().to_string())
    }

    /// Connects a client with one of the logins.
    ///
    /// # Errors
    /// If no server accepts the login.
    pub async fn client(&self, user: &str) -> anyhow::Result<async_nats::Client> {
        let servers: Vec<_> = self.nodes.iter().map(NatsServer::url).collect();
        let options = ConnectOptions::with_user_and_password(user.to_owned(), PASSWORD.to_owned());
        let options = if user == "processor" { options.custom_inbox_prefix(INBOX) } else { options };
        options.connect(servers).await.with_context(|| format!("{user} cannot connect"))
    }

    /// Opens a connection with one of the logins, on which a test may send any bytes.
    ///
    /// # Errors
    /// If the first server does not accept the login.
    pub async fn raw(&self, user: &str) -> anyhow::Result<RawClient> {
        let port = self.nodes.first().context("no server")?.port();
        RawClient::connect(port, Some((user, PASSWORD))).await
    }
}

/// Gives a replica the processor's login.
pub(crate) fn logged_in(options: ProcessorOptions) -> ProcessorOptions {
    let options = options.set("NATS_USER", "processor").set("NATS_PASSWORD", PASSWORD);
    options.set("NATS_INBOX_PREFIX", INBOX)
}

/// The login of a producer.
pub(crate) const PRODUCER: Login = ("producer", PASSWORD);

async fn one(login: Option<Login>) -> anyhow::Result<NatsServer> {
    let text = here(&configuration(&manifests().join("nats/nats.yaml"))?, login)?;
    let environment = environment("bundled", &[]);
    NatsServer::start_configured(Configuration { environment, text, account: ACCOUNT, login }).await
}

/// Starts three servers, which may not have met yet.
async fn three(login: Option<Login>) -> anyhow::Result<Vec<NatsServer>> {
    let text = here(&configuration(&manifests().join("nats-three/nats.yaml"))?, login)?;
    let ports = free_ports::<3>()?;
    let mut nodes = Vec::new();
    for (n, port) in ports.iter().enumerate() {
        let own = format!("127.0.0.1:{port}");
        ensure!(text.contains("0.0.0.0:6222"), "the configuration has no address for the other servers");
        let text = text.replace("0.0.0.0:6222", &own);
        let environment = environment(&format!("n{n}"), &ports);
        let configuration = Configuration { environment, text, account: ACCOUNT, login };
        nodes.push(NatsServer::start_configured(configuration).await?);
    }
    Ok(nodes)
}

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// Reads the file in the manifest's `ConfigMap`.
fn configuration(manifest: &Path) -> anyhow::Result<String> {
    let text =
        std::fs::read_to_string(manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let (_, after) = text.split_once("  nats.conf: |\n").context("no nats.conf in the manifest")?;
    let lines: Vec<_> =
        after.lines().take_while(|line| line.is_empty() || line.starts_with("    ")).collect();
    ensure!(lines.len() > 10, "the nats.conf in the manifest is nearly empty");
    Ok(lines.join("\n"))
}

/// Adapts the configuration to this machine: other addresses and folders, and this login in the first account, which
/// has the streams. Everything else stays.
fn here(text: &str, login: Option<Login>) -> anyhow::Result<String> {
    let mut text = text.to_owned();
    if let Some((user, password)) = login {
        let (before, users) = text.split_once("users: [").context("no users in the configuration")?;
        ensure!(
            before.contains(&format!("{ACCOUNT} {{")),
            "the first account is not the account of the streams"
        );
        text = format!("{before}users: [ {{user: {user}, password: {password}}}\n{users}");
    }
    for (there, here) in [
        ("0.0.0.0:4222", format!("127.0.0.1:{PORT}")),
        ("0.0.0.0:8222", format!("127.0.0.1:{MONITOR}")),
        ("/run/nats/nats.pid", format!("{DATA}/nats.pid")),
        ("\"/data\"", format!("\"{DATA}\"")),
    ] {
        ensure!(text.contains(there), "no {there} in the configuration");
        text = text.replace(there, &here);
    }
    Ok(text)
}

/// The environment variables of the chart's pods.
fn environment(name: &str, routes: &[u16]) -> Vec<(String, String)> {
    let mut environment = vec![("POD_NAME".to_owned(), name.to_owned())];
    for login in ["PROCESSOR", "PRODUCER"] {
        environment.push((format!("{login}_PASSWORD"), format!("'{PASSWORD}'")));
    }
    environment.push(("ROUTES_PASSWORD".to_owned(), "'routes'".to_owned()));
    for (n, port) in routes.iter().enumerate() {
        environment.push((format!("ROUTE_{n}"), format!("\"nats://routes:routes@127.0.0.1:{port}\"")));
    }
    environment
}
