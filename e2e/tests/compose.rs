//! Checks docker-compose.yml with Docker Compose itself: everything that it names exists, every service is confined,
//! and errors are refused. No engine is needed, because nothing starts.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const FILE: &str = include_str!("../../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../../Dockerfile");
const KV_API: &str = include_str!("../../edge/kv-api.mjs");
const VARIABLES: &str = include_str!("../../.env.example");
const WRANGLER: &str = include_str!("../../edge/wrangler.toml");
const NATS: &str = include_str!("../../charts/taskpipeline/charts/nats/values.yaml");

/// The only image without a digest: none of this release was known when it was pinned, and older releases lack its fixes.
const UNPINNED: &str = "nats";

static MODEL: LazyLock<Value> = LazyLock::new(|| load(FILE).unwrap());

/// Loads a file by Compose, as if it were at the top of the clone.
fn load(file: &str) -> anyhow::Result<Value> {
    let program = std::env::var_os("TASKPIPELINE_COMPOSE")
        .context("TASKPIPELINE_COMPOSE is not set; run `cargo xtask test`")?;
    let mut command = Command::new(&program);
    if Path::new(&program).file_name() == Some(OsStr::new("docker")) {
        command.arg("compose");
    }
    command.args(["--project-directory", ROOT, "--file", "-", "config", "--format", "json"]);
    let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    running.stdin.take().context("Compose has no standard input")?.write_all(file.as_bytes())?;
    let done = running.wait_with_output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(serde_json::from_slice(&done.stdout)?)
}

fn services() -> impl Iterator<Item = (&'static str, &'static Value)> {
    MODEL["services"].as_object().unwrap().iter().map(|(name, service)| (name.as_str(), service))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The text after the first `key` in a file of another format.
fn after<'a>(file: &'a str, key: &str) -> &'a str {
    let (_, rest) = file.split_once(key).unwrap();
    rest.lines().next().unwrap().trim().trim_matches('"')
}

#[test]
fn every_service_is_there_of_a_pinned_version_or_built_here() {
    let names: Vec<_> = services().map(|(name, _)| name).collect();
    assert_eq!(names, ["edge", "grafana", "kv-api", "nats", "processor", "prometheus"]);
    for (name, service) in services() {
        let Some(image) = service["image"].as_str() else {
            let target = service["build"]["target"].as_str().unwrap();
            assert!(DOCKERFILE.contains(&format!(" AS {target}\n")), "the Dockerfile has no {target}");
            println!("{name}: built, {target}");
            continue;
        };
        let (named, digest) =
            image.split_once("@sha256:").map_or((image, None), |(named, digest)| (named, Some(digest)));
        let (_, tag) = named.rsplit_once(':').unwrap();
        assert_eq!(tag.split('.').count(), 3, "the tag of {image} is not a full version");
        match digest {
            Some(digest) => assert!(is_sum(digest), "{image}"),
            None => assert_eq!(name, UNPINNED, "{image} has no digest"),
        }
        println!("{name}: {image}");
    }
    let nats = format!("{}:{}", after(NATS, "repository: "), after(NATS, "tag: "));
    assert_eq!(MODEL["services"]["nats"]["image"], nats, "the image differs from the chart's");
}

#[test]
fn the_dockerfiles_bases_are_of_one_digest() {
    let bases: Vec<_> =
        DOCKERFILE.lines().filter_map(|line| line.strip_prefix("ARG ")?.split_once("_IMAGE=")).collect();
    assert_eq!(bases.len(), 3);
    for (name, image) in bases {
        let (tagged, digest) = image.split_once("@sha256:").unwrap_or((image, ""));
        assert!(tagged.contains(':') && is_sum(digest), "{name}: {image}");
    }
    let from = DOCKERFILE.lines().filter_map(|line| line.strip_prefix("FROM "));
    let others: Vec<_> = from.filter(|from| from.contains('/') || from.contains(':')).collect();
    assert!(others.is_empty(), "{others:?}");
}

fn is_sum(digest: &str) -> bool {
    digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn every_port_is_for_this_machine_alone() {
    let mut published = BTreeSet::new();
    for (name, service) in services() {
        for port in list(&service["ports"]) {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}: {port}");
            published.insert(port["published"].as_str().unwrap().parse::<u16>().unwrap());
        }
    }
    assert_eq!(published, BTreeSet::from([3000, 3001, 4222, 8787, 9090]));
}

#[test]
fn every_service_is_confined_and_comes_back() {
    for (name, service) in services() {
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        assert!(service["privileged"].is_null() && service["cap_add"].is_null(), "{name}");
    }
}

#[test]
fn every_mounted_file_is_there_and_none_is_copied_into_what_is_read_only() {
    for (name, config) in MODEL["configs"].as_object().unwrap() {
        let inline = config["content"].as_str().is_some_and(|content| !content.is_empty());
        let file = config["file"].as_str().is_some_and(|file| Path::new(file).is_file());
        assert!(inline || file, "{name}: {config}");
    }
    for (name, service) in services() {
        for mount in list(&service["volumes"]) {
            assert_eq!(mount["type"], "volume", "{name}");
        }
        // Compose loads it, and refuses it only at the start.
        let copied = list(&service["configs"])
            .iter()
            .any(|config| MODEL["configs"][config["source"].as_str().unwrap()]["content"].is_string());
        assert_eq!(service["read_only"] == true, !copied, "{name}");
    }
}

#[test]
fn the_processor_is_told_what_it_knows_and_writes_where_the_worker_reads() {
    let processor = &MODEL["services"]["processor"];
    let known: BTreeSet<_> = VARIABLES
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name)
        .collect();
    let environment = processor["environment"].as_object().unwrap();
    for name in environment.keys() {
        assert!(known.contains(name.as_str()), "{name} is not in .env.example");
    }
    assert_eq!(environment["CF_NAMESPACE_ID"], after(WRANGLER, "\nid = "));
    // The path goes through the service that forwards to the Worker's address.
    assert!(environment["CF_API_BASE_URL"].as_str().unwrap().starts_with("http://kv-api:8788/"));
    assert!(KV_API.contains("listen(8788)") && KV_API.contains(r#"host: "edge", port: 8787"#));
    assert!(DOCKERFILE.contains(r#""--port", "8787""#));
}

#[test]
fn prometheus_and_grafana_are_told_of_each_other_and_of_the_processor() {
    let text = |config: &str| MODEL["configs"][config]["content"].as_str().unwrap().to_owned();
    assert!(text("prometheus").contains(r#"targets: ["processor:3001"]"#));
    assert!(text("grafana-data-source").contains("url: http://prometheus:9090"));

    let targets = |service: &str| {
        let configs = list(&MODEL["services"][service]["configs"]).iter();
        configs.map(|config| config["target"].as_str().unwrap()).collect::<Vec<_>>()
    };
    let grafana = targets("grafana");
    let home = &MODEL["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    assert!(grafana.contains(&home.as_str().unwrap()), "{home} {grafana:?}");
    let folder = after(&text("grafana-dashboards"), "path: ").trim_end_matches('}').to_owned();
    assert!(home.as_str().unwrap().starts_with(&format!("{folder}/")), "{home} {folder}");
    assert_eq!(targets("prometheus"), ["/etc/prometheus/prometheus.yml", "/etc/prometheus/alerts.yaml"]);
}

#[test]
fn a_slip_in_the_file_is_refused() {
    let slips = [
        ("    image: nats:", "    imagee: nats:", "imagee"),
        ("    healthcheck:", "    healthchek:", "healthchek"),
        ("{condition: service_healthy}", "{condition: service_helthy}", "condition"),
        ("{condition: service_healthy}", "{conditon: service_healthy}", "conditon"),
        ("entrypoint:", "entrypont:", "entrypont"),
        ("source: dashboard,", "source: dashbord,", "dashbord"),
        (r#"["kv:/data"]"#, r#"["kw:/data"]"#, "kw"),
        ("127.0.0.1:4222:4222", "127.0.0.1:4222:422x", "422x"),
    ];
    for (right, wrong, told) in slips {
        assert!(FILE.contains(right), "{right}");
        let refused = load(&FILE.replace(right, wrong)).unwrap_err().to_string();
        assert!(refused.contains(told), "{wrong}: {refused}");
        println!("{wrong}: {}", refused.trim());
    }
}
