//! The ways to connect to NATS: websockets, TLS, client certificates, an NKey, rotated credentials and tokens in
//! files, and a slow server.
//!
//! A scheme that promises encryption never falls back.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{
    Certificates, NatsServer, Processor, ProcessorOptions, created, eventually, free_port,
};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const SOON: Duration = Duration::from_secs(20);

async fn simulator() -> Simulator {
    Simulator::start(Config { latency: Latency::NONE, ..Config::default() }).await.unwrap()
}

/// Starts a nats-server with additional configuration.
async fn server(dir: &Path, config: &str) -> NatsServer {
    let file = dir.join("nats.conf");
    std::fs::write(&file, config).unwrap();
    NatsServer::start_with(&["--config", file.to_str().unwrap()]).await.unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Starts a replica, publishes an event with its own command, and waits until the task lands.
async fn works(options: &ProcessorOptions, kv: &Simulator, id: &str) -> Processor {
    let replica = Processor::start(options).await.unwrap();
    lands(options, kv, id, &replica).await;
    replica
}

async fn lands(options: &ProcessorOptions, kv: &Simulator, id: &str, replica: &Processor) {
    let event = created(id)["data"].clone();
    let field = |name: &str| event[name].as_str().unwrap().to_owned();
    let arguments = ["publish", "created", "--id", id, "--title", &field("title"), "--status", "pending"];
    let arguments = [arguments.as_slice(), &["--description", "x"]].concat();
    eventually(SOON, async || {
        let output = options.command(&arguments)?.output().await?;
        ensure!(output.status.success(), "{output:?}\n{}", replica.process().tail());
        Ok(())
    })
    .await
    .unwrap();
    eventually(SOON, async || {
        ensure!(kv.get(&format!("tasks:{id}")).is_some(), "not in KV\n{}", replica.process().tail());
        Ok(())
    })
    .await
    .unwrap();
}

/// Starts a replica that cannot connect to its server, and returns the reason in `/health`.
async fn does_not_connect(options: &ProcessorOptions) -> String {
    let replica = Processor::spawn(options).unwrap();
    eventually(SOON, async || {
        let (_, health) = replica.get("/health").await?;
        let nats = serde_json::from_str::<Value>(&health)?["services"]["nats"].clone();
        let message = nats["message"].as_str().unwrap_or_default().to_owned();
        ensure!(nats["status"] == "connecting" && !message.is_empty(), "{health}");
        Ok(message)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_work_plain_and_encrypted() {
    let (kv, certificates) = (simulator().await, Certificates::new().unwrap());
    let port = free_port().unwrap();
    let config = format!("websocket {{ listen: \"127.0.0.1:{port}\", no_tls: true }}");
    let nats = server(certificates.dir(), &config).await;
    let url = format!("ws://127.0.0.1:{port}");
    let options = ProcessorOptions::new(&nats, &kv).set("NATS_URL", &url);
    works(&options, &kv, "by-ws").await;

    let port = free_port().unwrap();
    let [cert, key] = ["server.crt", "server.key"].map(|name| certificates.file(name));
    let config = format!(
        "websocket {{ listen: \"127.0.0.1:{port}\", tls {{ cert_file: \"{}\", key_file: \"{}\" }} }}",
        text(&cert),
        text(&key)
    );
    let nats = server(certificates.dir(), &config).await;
    let options = ProcessorOptions::new(&nats, &kv).set("NATS_URL", &format!("wss://127.0.0.1:{port}"));
    let why = does_not_connect(&options).await;
    let ca = certificates.file("ca.crt");
    works(&options.set("NATS_CA", text(&ca)), &kv, "by-wss").await;
    println!("ws and wss work; wss without NATS_CA: {why}");
}

/// Acts as a nats-server without TLS, and records what it receives.
async fn eavesdropper() -> (u16, Arc<std::sync::Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, heard) = (listener.local_addr().unwrap().port(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let all = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heard = Arc::clone(&all);
            tokio::spawn(async move {
                let info = json!({"server_id": "x", "version": "2.12.0", "max_payload": 1_048_576,
                    "host": "127.0.0.1", "port": port, "headers": true, "proto": 1});
                let _ = stream.write_all(format!("INFO {info}\r\n").as_bytes()).await;
                let mut buffer = [0; 4_096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    heard.lock().unwrap().extend_from_slice(&buffer[..length]);
                }
            });
        }
    });
    (port, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheme_that_promises_encryption_never_sends_the_login_in_plain() {
    let (kv, nats) = (simulator().await, NatsServer::start().await.unwrap());
    for schemes in [&["tls"][..], &["wss"], &["tls", "nats"]] {
        let (port, heard) = eavesdropper().await;
        let urls: Vec<_> = schemes.iter().map(|scheme| format!("{scheme}://127.0.0.1:{port}")).collect();
        let options = ProcessorOptions::new(&nats, &kv)
            .set("NATS_URL", &urls.join(","))
            .set("NATS_USER", "me")
            .set("NATS_PASSWORD", "hidden-password");
        let replica = Processor::spawn(&options).unwrap();
        eventually(SOON, async || {
            ensure!(
                heard.lock().unwrap().len() > 100,
                "the server heard nothing\n{}",
                replica.process().tail()
            );
            Ok(())
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let heard = String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
        let (plain, words) = (heard.contains("hidden-password"), heard.contains("CONNECT"));
        println!("{urls:?}: {} bytes heard, the password among them: {plain}", heard.len());
        assert!(!plain && !words, "{urls:?}");
    }
    for mixed in ["wss://127.0.0.1:1,ws://127.0.0.1:1", "wss://127.0.0.1:1,nats://127.0.0.1:1"] {
        let mut replica =
            Processor::spawn(&ProcessorOptions::new(&nats, &kv).set("NATS_URL", mixed)).unwrap();
        assert!(!replica.wait(SOON).await.unwrap().success());
        let said = replica.process().lines().join("\n");
        assert!(said.contains("NATS_URL: "), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_lets_in_and_tls_may_come_first() {
    let (kv, certificates) = (simulator().await, Certificates::new().unwrap());
    let file = |name: &str| text(&certificates.file(name)).to_owned();
    let tls = |more: &str| {
        format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true{more} }}",
            file("server.crt"),
            file("server.key"),
            file("ca.crt")
        )
    };
    for (id, more, first) in [("mtls", "", "false"), ("first", ", handshake_first: true", "true")] {
        let nats = server(certificates.dir(), &tls(more)).await;
        let options =
            ProcessorOptions::new(&nats, &kv).set("NATS_CA", &file("ca.crt")).set("NATS_TLS_FIRST", first);
        let why = does_not_connect(&options).await;
        let options = options.set("NATS_CERT", &file("client.crt")).set("NATS_KEY", &file("client.key"));
        works(&options, &kv, id).await;
        println!("{id}: without a certificate: {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_nkey_lets_in_and_is_read_again_when_it_was_rotated() {
    let (kv, dir) = (simulator().await, TempDir::new().unwrap());
    let (old, new) = (KeyPair::new_user(), KeyPair::new_user());
    let config = |key: &KeyPair| format!("authorization {{ users: [ {{ nkey: {} }} ] }}", key.public_key());
    let seed = dir.path().join("seed");
    std::fs::write(&seed, old.seed().unwrap()).unwrap();
    let mut nats = server(dir.path(), &config(&old)).await;
    let options = ProcessorOptions::new(&nats, &kv).set("NATS_NKEY", text(&seed));
    let replica = works(&options, &kv, "old").await;

    nats.kill().await.unwrap();
    std::fs::write(&seed, new.seed().unwrap()).unwrap();
    std::fs::write(dir.path().join("nats.conf"), config(&new)).unwrap();
    nats.restart().await.unwrap();
    replica.wait_ready(SOON).await.unwrap();
    lands(&options, &kv, "new", &replica).await;
    println!("one process, two NKeys: {:?}", kv.keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_that_is_rewritten_is_read_at_the_next_connect() {
    let (kv, dir) = (simulator().await, TempDir::new().unwrap());
    let file = dir.path().join("token");
    std::fs::write(&file, "first-token\n").unwrap();
    let mut nats = NatsServer::start_with(&["--auth", "first-token"]).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv).set("NATS_TOKEN_FILE", text(&file));
    let replica = works(&options, &kv, "first").await;

    nats.kill().await.unwrap();
    nats.set_arguments(&["--auth", "second-token"]);
    nats.restart().await.unwrap();
    // The old file is refused until a new one is written.
    eventually(SOON, async || {
        let (_, health) = replica.get("/health").await?;
        ensure!(health.to_lowercase().contains("authorization"), "{health}");
        Ok(())
    })
    .await
    .unwrap();
    std::fs::write(&file, "second-token\n").unwrap();
    replica.wait_ready(SOON).await.unwrap();
    lands(&options, &kv, "second", &replica).await;
}

/// A JWT of NATS: claims signed by an NKey.
fn jwt(signer: &KeyPair, subject: &str, kind: &str, expires: Option<u64>, more: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut nats = json!({"type": kind, "version": 2});
    for (key, value) in more.as_object().unwrap() {
        nats[key] = value.clone();
    }
    let mut claims = json!({"jti": format!("{subject}-{now}-{expires:?}"), "iat": now,
        "iss": signer.public_key(), "name": "x", "sub": subject, "nats": nats});
    if let Some(expires) = expires {
        claims["exp"] = json!(now + expires);
    }
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), encode(&claims));
    let signature = signer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_and_are_rewritten_are_read_again() {
    let (kv, dir) = (simulator().await, TempDir::new().unwrap());
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let no_limit = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
        "wildcards": true, "conn": -1, "leaf": -1});
    let account_claims = json!({"limits": no_limit, "default_permissions": {"pub": {}, "sub": {}}});
    let account_jwt = jwt(&operator, &account.public_key(), "account", None, &account_claims);
    let operator_jwt = jwt(&operator, &operator.public_key(), "operator", None, &json!({}));
    let (system, id) = (KeyPair::new_account(), account.public_key());
    let system_jwt = jwt(&operator, &system.public_key(), "account", None, &account_claims);
    let preload = format!("{id}: {account_jwt}, {}: {system_jwt}", system.public_key());
    let config = format!(
        "operator: {operator_jwt}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {preload} }}\n",
        system.public_key()
    );
    // The account has no JetStream, which mode Core does not need.
    let nats = server(dir.path(), &config).await;
    let creds = dir.path().join("user.creds");
    let issued = AtomicU32::new(0);
    let issue = |expires: Option<u64>| {
        let user = KeyPair::new_user();
        let claims = json!({"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
        let jwt = jwt(&account, &user.public_key(), "user", expires, &claims);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        );
        std::fs::write(&creds, text).unwrap();
        issued.fetch_add(1, Ordering::Relaxed);
    };
    issue(Some(4));
    let options = ProcessorOptions::new(&nats, &kv).core().set("NATS_CREDS", text(&creds));
    let replica = Processor::start(&options).await.unwrap();
    eventually(SOON, async || {
        let (ready, _) = replica.get("/readyz").await?;
        ensure!(ready == 503, "the credentials have not expired\n{}", replica.process().tail());
        Ok(())
    })
    .await
    .unwrap();
    issue(None);
    replica.wait_ready(SOON).await.unwrap();
    let client = async_nats::ConnectOptions::with_credentials_file(&creds).await.unwrap();
    let client = client.connect(nats.url()).await.unwrap();
    client.publish("tasks.created", created("a").to_string().into()).await.unwrap();
    client.flush().await.unwrap();
    eventually(SOON, async || {
        ensure!(kv.get("tasks:a").is_some(), "not in KV\n{}", replica.process().tail());
        Ok(())
    })
    .await
    .unwrap();
    println!("{} credentials, one process", issued.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_only_after_ten_seconds_is_waited_for() {
    let (kv, nats) = (simulator().await, NatsServer::start().await.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, server) = (listener.local_addr().unwrap().port(), nats.port());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(10_500)).await;
                let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let options = ProcessorOptions::new(&nats, &kv);
    let replica =
        Processor::spawn(&options.clone().set("NATS_URL", &format!("nats://127.0.0.1:{port}"))).unwrap();
    replica.wait_ready(Duration::from_secs(30)).await.unwrap();
    lands(&options, &kv, "slow", &replica).await;
}

/// A proxy between a replica and its server that names another server in its first line. That line comes before TLS
/// and the login.
struct Between {
    port: u16,
    running: JoinHandle<()>,
}

impl Between {
    async fn start(port: u16, server: u16, named: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let running = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut server = BufReader::new(TcpStream::connect(("127.0.0.1", server)).await?);
                    let mut line = String::new();
                    server.read_line(&mut line).await?;
                    let info = line.strip_prefix("INFO ").unwrap_or_default();
                    let mut info: Value = serde_json::from_str(info)?;
                    info["connect_urls"] = json!([format!("127.0.0.1:{named}")]);
                    client.write_all(format!("INFO {info}\r\n").as_bytes()).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { port, running }
    }

    /// Ends all connections, and accepts no more.
    async fn cut(self) -> u16 {
        self.running.abort();
        let _ = self.running.await;
        self.port
    }
}

/// A host that nobody has configured: it answers like a server, and records what it receives.
async fn stranger() -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (port, heard) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Vec<u8>>>::default());
    let keep = Arc::clone(&heard);
    tokio::spawn(async move {
        let info = json!({"server_id": "x", "version": "2.11.0", "proto": 1, "max_payload": 1_048_576, "headers": true});
        while let Ok((mut client, _)) = listener.accept().await {
            client.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = client.read(&mut bytes).await {
                keep.lock().unwrap().extend_from_slice(&bytes[..read]);
            }
        }
    });
    (port, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_does_not_go_to_a_server_that_another_one_names() {
    let dir = TempDir::new().unwrap();
    let nats = server(dir.path(), "authorization { user: processor, password: hidden }").await;
    let kv = simulator().await;
    let (named, heard) = stranger().await;
    let between = Between::start(0, nats.port(), named).await;
    let options = ProcessorOptions::new(&nats, &kv)
        .set("NATS_URL", &format!("nats://127.0.0.1:{}", between.port))
        .set("NATS_USER", "processor")
        .set("NATS_PASSWORD", "hidden");
    let replica = works(&options, &kv, "before").await;
    let port = between.cut().await;
    let connected = async || replica.metric("taskpipeline_nats_connected").await.unwrap();
    eventually(SOON, async || {
        ensure!(connected().await == 0.0, "still connected");
        Ok(())
    })
    .await
    .unwrap();
    // The time is longer than the longest delay between two attempts.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let heard = String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
    println!(
        "cut from its server, the replica sent {} bytes to the host that was named: {heard:?}",
        heard.len()
    );
    assert!(heard.is_empty(), "{heard}");
    let _between = Between::start(port, nats.port(), named).await;
    lands(&options, &kv, "after", &replica).await;
}
