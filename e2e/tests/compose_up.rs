//! docker-compose.yml, started by an engine: the visible result, and the fate of the data. One test runs at a time,
//! because the file sets the ports.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::StatusCode;
use serde_json::Value;
use taskpipeline_e2e::{Edge, Project};
use taskpipeline_testkit::{created, eventually, http};

const README: &str = include_str!("../../README.md");
const ALERTS: &str = include_str!("../../charts/taskpipeline/files/alerts.yaml");
const NATS: &str = "nats://127.0.0.1:4222";
const PROCESSOR: &str = "http://127.0.0.1:3001";
const PROMETHEUS: &str = "http://127.0.0.1:9090";

/// The memory limit of a service after its start, in MiB: twice the measured value, so that a leak or a second program shows.
const MEMORY: [(&str, u64); 6] = [
    ("edge", 1_100),
    ("grafana", 500),
    ("kv-api", 120),
    ("nats", 60),
    ("processor", 60),
    ("prometheus", 160),
];

/// The user of each service. The image of NATS names no user, and a new volume belongs to root; so NATS is root
/// without any capability.
const USERS: [(&str, &str); 6] = [
    ("edge", "1000"),
    ("grafana", "472"),
    ("kv-api", "1000"),
    ("nats", "0"),
    ("processor", "65532"),
    ("prometheus", "65534"),
];

/// The time limit for changes that take a few seconds on an idle machine.
const SOON: Duration = Duration::from_secs(120);

/// The lines in the README after `docker compose`.
fn readme() -> Vec<Vec<String>> {
    let (_, section) = README.split_once("## With Docker").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let blocks = section.split("```").skip(1).step_by(2);
    let lines = blocks.flat_map(|block| {
        let joined = block.trim_start_matches("sh\n").replace("\\\n", " ");
        joined.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    let commands = lines.filter_map(|line| line.strip_prefix("docker compose ").map(str::to_owned));
    commands.map(|line| words(&line)).collect()
}

/// Splits a line of a shell into words, without its comment.
fn words(line: &str) -> Vec<String> {
    let line = line.split(" #").next().unwrap_or_default();
    let quoted = line.split('"').enumerate();
    let words = quoted.flat_map(|(n, part)| match n % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    words.collect()
}

async fn compose(project: &Project, arguments: &[String]) -> anyhow::Result<String> {
    project.compose(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Runs the processor's own `publish` in a container, and returns its output.
///
/// With podman 4.3 on a busy machine, the container once ended with success and without output, and nothing was
/// published. Most likely the engine reported the end of the container before its start. The test repeats such a run;
/// the events of these tests may come twice.
async fn publish(project: &Project, arguments: &[String]) -> anyhow::Result<String> {
    for _ in 0..3 {
        let told = compose(project, arguments).await?;
        if !told.trim().is_empty() {
            ensure!(told.contains(" published tasks."), "{told}");
            return Ok(told);
        }
        println!("the container of {} ended without output", arguments.join(" "));
    }
    anyhow::bail!("{} printed nothing, three times", arguments.join(" "))
}

async fn json(url: &str) -> anyhow::Result<Value> {
    Ok(http().get(url).send().await?.error_for_status()?.json().await?)
}

async fn shows(edge: &Edge, path: &str, wanted: &str) -> anyhow::Result<()> {
    eventually(SOON, async || {
        let (code, text) = edge.text(path).await?;
        ensure!(code == StatusCode::OK && text.contains(wanted), "{path}: {code} {text}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_the_quick_starts_task_on_the_page_and_in_prometheus() {
    let project = Project::new().await.unwrap();
    let lines = readme();
    let [up, publish, logs, down] = &lines[..] else { panic!("the README has {lines:?}") };
    let began = Instant::now();
    compose(&project, &[up.as_slice(), &["--detach".to_owned()]].concat()).await.unwrap();
    let started = began.elapsed();
    println!("{}", self::publish(&project, publish).await.unwrap());
    let edge = project.edge();
    // The empty page names the quick start's task, too, but without a link.
    eventually(SOON, async || {
        let (code, page) = edge.get("/").await?;
        ensure!(code == StatusCode::OK && page.contains(r#"href="/tasks/task-1""#), "{code} {page}");
        Ok(())
    })
    .await
    .unwrap();
    let shown = began.elapsed();
    println!(
        "started after {started:.1?}, the quick start's task on the page {shown:.1?} after the empty page"
    );
    shows(&edge, "/tasks/task-1", "My First Task").await.unwrap();
    assert_eq!(edge.json("/api/tasks/task-1").await.unwrap().1["status"], "pending");

    let change = |words: &str| {
        let line = format!("run --rm processor publish {words}");
        let (project, arguments) = (&project, self::words(&line));
        async move { self::publish(project, &arguments).await }
    };
    change("updated --id task-1 --status completed --title Done").await.unwrap();
    shows(&edge, "/tasks/task-1", "Done").await.unwrap();
    assert_eq!(edge.json("/api/tasks/task-1").await.unwrap().1["status"], "completed");
    change("deleted --id task-1").await.unwrap();
    eventually(SOON, async || {
        let (page, api) = (edge.get("/tasks/task-1").await?.0, edge.get("/api/tasks/task-1").await?.0);
        ensure!((page, api) == (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND), "{page} {api}");
        Ok(())
    })
    .await
    .unwrap();
    let logs: Vec<String> = logs.iter().filter(|word| *word != "--follow").cloned().collect();
    assert!(compose(&project, &logs).await.unwrap().contains("DELETE tasks:task-1 successful"));

    eventually(SOON, async || {
        let targets = json(&format!("{PROMETHEUS}/api/v1/targets")).await?;
        let targets = targets["data"]["activeTargets"].as_array().context("no targets")?;
        ensure!(targets.len() == 2, "{targets:?}");
        ensure!(targets.iter().all(|target| target["health"] == "up"), "{targets:?}");
        let landed = json(&format!("{PROMETHEUS}/api/v1/query?query=taskpipeline_kv_requests_total")).await?;
        ensure!(!landed["data"]["result"].as_array().context("no result")?.is_empty(), "{landed}");
        Ok(())
    })
    .await
    .unwrap();
    let rules = json(&format!("{PROMETHEUS}/api/v1/rules")).await.unwrap();
    let groups = rules["data"]["groups"].as_array().unwrap();
    let loaded: usize = groups.iter().map(|group| group["rules"].as_array().unwrap().len()).sum();
    assert_eq!(loaded, ALERTS.matches("- alert:").count());
    println!("two targets are up, {loaded} alerts are loaded");

    compose(&project, down).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_container_is_confined_and_nothing_listens_beyond_this_machine() {
    let project = Project::new().await.unwrap();
    project.compose(&["up", "--detach"]).await.unwrap();
    shows(&project.edge(), "/", "No tasks").await.unwrap();
    for service in project.services().await.unwrap() {
        let container = project.inspect(&service).await.unwrap();
        let pid = container["State"]["Pid"].as_u64().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        let read_only = container["HostConfig"]["ReadonlyRootfs"].as_bool().unwrap();
        let user = value("Uid").split('\t').next().unwrap().to_owned();
        let memory = resident(pid).unwrap() / 1024;
        println!(
            "{service}: user {user}, read-only root {read_only}, capabilities {}, no new privileges {}, {} MiB resident",
            value("CapEff"),
            value("NoNewPrivs"),
            memory,
        );
        let (_, wanted) = USERS.iter().find(|(name, _)| *name == service).unwrap();
        assert_eq!(user, *wanted, "{service}");
        let (_, most) = MEMORY.iter().find(|(name, _)| *name == service).unwrap();
        assert!((1..=*most).contains(&memory), "{service} uses {memory} MiB, more than {most}");
        assert_eq!(value("CapEff").trim_start_matches('0'), "", "{service}");
        assert_eq!(value("CapBnd").trim_start_matches('0'), "", "{service}");
        assert_eq!(value("NoNewPrivs"), "1", "{service}");
        // If the file contains the text of a config, Compose copies it into the container.
        assert_eq!(read_only, !["prometheus", "grafana"].contains(&service.as_str()), "{service}");
    }
    let ports = [3001, 4222, 8787, 9090];
    for port in ports {
        assert!(reached(Ipv4Addr::LOCALHOST.into(), port).await, "{port} is not open here");
    }
    let others = addresses().await.unwrap();
    for (address, port) in others.iter().flat_map(|address| ports.map(|port| (*address, port))) {
        assert!(!reached(address, port).await, "{address}:{port} is open to others");
    }
    println!("{} ports are open at 127.0.0.1, none at {others:?}", ports.len());
    assert!(!others.is_empty(), "this machine has no other address to try");
}

/// The memory of all processes of the container whose first process this is, in KiB.
fn resident(pid: u64) -> anyhow::Result<u64> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(&pid.to_string()).context("no such process")?;
    let mut all = 0;
    for process in std::fs::read_dir("/proc")? {
        let process = process?.file_name();
        let process = process.to_string_lossy();
        if namespace(&process).as_ref() != Some(&own) {
            continue;
        }
        // A process may end meanwhile.
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        all += line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(all)
}

async fn reached(address: IpAddr, port: u16) -> bool {
    let connected = tokio::net::TcpStream::connect((address, port));
    matches!(tokio::time::timeout(Duration::from_secs(2), connected).await, Ok(Ok(_)))
}

/// The addresses of this machine that others might know, without those of the containers' own networks.
async fn addresses() -> anyhow::Result<Vec<IpAddr>> {
    let told = tokio::process::Command::new("hostname").arg("-I").output().await?;
    let told = String::from_utf8(told.stdout)?;
    Ok(told.split_whitespace().filter_map(|address| address.parse().ok()).collect())
}

/// Publishes creates with acks until it is told to stop, whichever service is down, and returns their number.
async fn load(prefix: &str, stop: &tokio::sync::watch::Receiver<bool>) -> anyhow::Result<u32> {
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(NATS).await?;
    let jetstream = async_nats::jetstream::new(client);
    let mut stored = 0;
    while !*stop.borrow() {
        let event = created(&format!("{prefix}-{stored}")).to_string();
        let acked = async { jetstream.publish("tasks.created", event.into()).await?.await };
        if matches!(tokio::time::timeout(Duration::from_secs(2), acked).await, Ok(Ok(_))) {
            stored += 1;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(stored)
}

/// Waits until the edge shows this many tasks with this prefix.
async fn all_land(edge: &Edge, prefix: &str, wanted: u32) -> anyhow::Result<()> {
    eventually(SOON, async || {
        let (mut cursor, mut found) = (String::new(), 0);
        loop {
            let (_, page) = edge.json(&format!("/api/tasks?limit=1000{cursor}")).await?;
            let tasks = page["tasks"].as_array().context("no tasks")?;
            let ours = |task: &&Value| task["id"].as_str().is_some_and(|id| id.starts_with(prefix));
            found += u32::try_from(tasks.iter().filter(ours).count())?;
            match page["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        // At the end, one more event may have been stored whose ack was lost.
        ensure!(found >= wanted, "{found} of {wanted} tasks are on the page");
        Ok(())
    })
    .await
}

async fn ready() -> anyhow::Result<()> {
    eventually(SOON, async || json(&format!("{PROCESSOR}/health")).await.map(drop)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_restarted_and_killed_under_load_loses_nothing() {
    let project = Project::new().await.unwrap();
    project.compose(&["up", "--detach"]).await.unwrap();
    ready().await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publishing = tokio::spawn(async move { load("tough", &stopped).await });
    let services = project.services().await.unwrap();
    for service in &services {
        project.compose(&["restart", "--timeout", "10", service]).await.unwrap();
        ready().await.with_context(|| format!("{service} was restarted")).unwrap();
        let before = project.inspect(service).await.unwrap();
        let pid = before["State"]["Pid"].as_u64().unwrap();
        let killed =
            tokio::process::Command::new("kill").args(["-9", &pid.to_string()]).status().await.unwrap();
        assert!(killed.success());
        eventually(SOON, async || {
            let now = project.inspect(service).await?;
            ensure!(
                now["State"]["Running"] == true && now["State"]["Pid"] != pid,
                "{service} is {}",
                now["State"]
            );
            Ok(())
        })
        .await
        .unwrap();
        ready().await.with_context(|| format!("{service} was killed")).unwrap();
        println!("{service}: restarted, killed, back");
    }
    stop.send_replace(true);
    let stored = publishing.await.unwrap().unwrap();
    assert!(stored > 100, "too few events were stored");
    all_land(&project.edge(), "tough-", stored).await.unwrap();
    println!("{} services restarted and killed: {stored} events stored, all on the page", services.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn down_keeps_the_data_and_down_with_volumes_does_not() {
    let project = Project::new().await.unwrap();
    project.compose(&["up", "--detach"]).await.unwrap();
    ready().await.unwrap();
    let nats = async_nats::connect(NATS).await.unwrap();
    let jetstream = async_nats::jetstream::new(nats);
    let publish = async |id: &str| {
        let event = created(id).to_string();
        jetstream.publish("tasks.created", event.into()).await.unwrap().await.unwrap()
    };
    let before = publish("kept").await.sequence;
    shows(&project.edge(), "/tasks/kept", "kept").await.unwrap();
    project.compose(&["down"]).await.unwrap();
    project.compose(&["up", "--detach"]).await.unwrap();
    ready().await.unwrap();
    shows(&project.edge(), "/tasks/kept", "kept").await.unwrap();
    let after = publish("later").await.sequence;
    assert_eq!(after, before + 1, "the stream was replaced");
    shows(&project.edge(), "/tasks/later", "later").await.unwrap();
    println!("down and up: the task is there, and the stream continues at {after}");
    project.compose(&["down", "--volumes"]).await.unwrap();
    project.compose(&["up", "--detach"]).await.unwrap();
    ready().await.unwrap();
    shows(&project.edge(), "/", "No tasks").await.unwrap();
    assert_eq!(publish("anew").await.sequence, 1);
    println!("down --volumes and up: no task, and an empty stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_before_everything_else_and_nats_away_for_30_s_lose_nothing() {
    let project = Project::new().await.unwrap();
    project.compose(&["up", "--detach", "--no-deps", "processor"]).await.unwrap();
    let code = async |path: &str| anyhow::Ok(http().get(format!("{PROCESSOR}{path}")).send().await?.status());
    eventually(SOON, async || {
        let codes = (code("/livez").await?, code("/readyz").await?, code("/health").await?);
        let told = (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE);
        ensure!(codes == told, "{codes:?}");
        Ok(())
    })
    .await
    .unwrap();
    project.compose(&["up", "--detach"]).await.unwrap();
    ready().await.unwrap();
    println!("a processor that starts first becomes ready with the others");

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publishing = tokio::spawn(async move { load("away", &stopped).await });
    tokio::time::sleep(Duration::from_secs(3)).await;
    project.compose(&["stop", "--timeout", "5", "nats"]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (health, live) = (code("/health").await.unwrap(), code("/livez").await.unwrap());
    assert_eq!((health, live), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK));
    tokio::time::sleep(Duration::from_secs(15)).await;
    project.compose(&["start", "nats"]).await.unwrap();
    ready().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.send_replace(true);
    let stored = publishing.await.unwrap().unwrap();
    assert!(stored > 100, "too few events were stored");
    all_land(&project.edge(), "away-", stored).await.unwrap();
    println!(
        "NATS was down for 30 s: {stored} events stored, none lost; /health returned 503 and /livez 200 meanwhile"
    );
}
