//! The bundled NATS with a certificate: nobody gets in without TLS, and neither does a server into the cluster.

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
        // Stored on all three, or not at all: over the routes.
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

    // A client that would send its password in the clear, as one does that was told of no TLS.
    let answer = said(&clients, "CONNECT {\"user\":\"producer\",\"pass\":\"x\"}\r\nPING\r\n").await.unwrap();
    let info = answer.lines().next().and_then(|line| line.strip_prefix("INFO ")).unwrap();
    let info: Value = serde_json::from_str(info).unwrap();
    assert_eq!(info["tls_required"], true, "{info}");
    assert!(!answer.contains("PONG"), "let in: {answer}");
    // Somebody who claims to be a server: there, TLS begins before a word is said.
    let routes = Forward::to(pods, "demo-nats-0", 6222).await.unwrap();
    let answer = said(&routes, "CONNECT {\"user\":\"routes\",\"pass\":\"x\"}\r\nPING\r\n").await.unwrap();
    assert_eq!(answer, "", "it talks to somebody without TLS");
    println!("without TLS, neither a client nor a server gets in");
}

/// All that a server says to somebody who says this without TLS, until it ends the connection.
async fn said(server: &Forward, words: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(server.address).await?;
    stream.write_all(words.as_bytes()).await?;
    let mut answer = Vec::new();
    // A connection that is reset has said what it has said.
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.context("no end")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
