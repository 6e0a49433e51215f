//! The bundled NATS with a certificate: without TLS, neither a client nor another server is accepted.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{ObjectMeta, PostParams};
use serde_json::Value;
use taskpipeline_e2e_cluster::{Chart, Forward, Namespace, Release, create, login_of};
use taskpipeline_testkit::Certificates;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const EVENTS: u32 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate_for_the_three_servers_nothing_goes_over_the_network_in_the_clear() {
    let namespace = Namespace::new("tls").await.unwrap();
    let names = ["demo-nats", "*.demo-nats-servers", "127.0.0.1"];
    let certificates = Certificates::for_servers(&names).unwrap();
    let key = |name: &str, file: &str| {
        (name.to_owned(), ByteString(std::fs::read(certificates.file(file)).unwrap()))
    };
    let data = [key("tls.crt", "server.crt"), key("tls.key", "server.key"), key("ca.crt", "ca.crt")];
    let secret = Secret {
        metadata: ObjectMeta { name: Some("servers".to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from(data)),
        ..Secret::default()
    };
    namespace.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    let values = [
        "nats.tls.secretName=servers",
        "nats.replicas=3",
        "nats.resources.requests.cpu=20m",
        // Events are stored on all three servers over the routes, or not at all.
        "pipeline.spec.delivery.stream.replicas=3",
    ];
    let release = Release::install_in(namespace, &Chart::current(), &values).await.unwrap();

    let pods = release.namespace.api::<Pod>();
    let clients = Forward::to(pods.clone(), "demo-nats-0", 4222).await.unwrap();
    let options = login_of(&release.namespace, "producer").await.unwrap();
    let options = options.add_root_certificates(certificates.file("ca.crt")).require_tls(true);
    let client = options.connect(format!("tls://{}", clients.address)).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    for n in 0..EVENTS {
        let event = create(&format!("tls-{n}"));
        jetstream.publish("tasks.created", event.into()).await.unwrap().await.unwrap();
    }
    release.kv.has_all("tls", EVENTS, Duration::from_secs(60)).await.unwrap();
    println!("{EVENTS} events over TLS, stored on three servers: all in KV");
    println!("{}", release.helm.test().await.unwrap());

    // This client would send its password in the clear, because its user did not configure TLS.
    let answer = said(&clients, "CONNECT {\"user\":\"producer\",\"pass\":\"x\"}\r\nPING\r\n").await.unwrap();
    let info = answer.lines().next().and_then(|line| line.strip_prefix("INFO ")).unwrap();
    let info: Value = serde_json::from_str(info).unwrap();
    assert_eq!(info["tls_required"], true, "{info}");
    assert!(!answer.contains("PONG"), "accepted: {answer}");
    // This client pretends to be a server. On routes, TLS begins before the first line.
    let routes = Forward::to(pods, "demo-nats-0", 6222).await.unwrap();
    let answer = said(&routes, "CONNECT {\"user\":\"routes\",\"pass\":\"x\"}\r\nPING\r\n").await.unwrap();
    assert_eq!(answer, "", "the server answers without TLS");
    println!("without TLS, neither a client nor a server gets in");
}

/// Sends these lines without TLS, and returns all lines of the server until it ends the connection.
async fn said(server: &Forward, words: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(server.address).await?;
    stream.write_all(words.as_bytes()).await?;
    let mut answer = Vec::new();
    // After a reset, the lines so far are still available.
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.context("no end")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
