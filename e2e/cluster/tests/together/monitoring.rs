//! The data of a release for Prometheus, Grafana and autoscalers.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use kube::ResourceExt;
use serde_json::Value;
use taskpipeline_e2e_cluster::{
    Chart, DryRun, ForeignCrds, Forward, Helm, Namespace, condition, crd_is_installed, eventually, objects,
    present, ready,
};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(60);
const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/taskpipeline/files");
const KEDA: &str = include_str!("../../../../manifests/examples/keda.yaml");
const COMPOSE: &str = include_str!("../../../../docker-compose.yml");

/// Runs promtool in the folder of the alert rules, and returns its output.
async fn promtool(arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let program = std::env::var_os("TASKPIPELINE_PROMTOOL")
        .context("TASKPIPELINE_PROMTOOL is not set; run `cargo xtask e2e`")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(FILES).kill_on_drop(true);
    let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    running.stdin.take().context("promtool has no standard input")?.write_all(input.as_bytes()).await?;
    let done = running.wait_with_output().await?;
    let said = String::from_utf8([done.stdout, done.stderr].concat())?;
    ensure!(done.status.success(), "promtool {}: {said}", arguments.join(" "));
    Ok(said)
}

/// The pods that Prometheus scrapes for a `PodMonitor`, each with the number of the port.
async fn scraped(namespace: &Namespace, monitor: &Value) -> anyhow::Result<Vec<(String, u16)>> {
    let labels = monitor["spec"]["selector"]["matchLabels"].as_object().context("no labels to select by")?;
    let labels: Vec<_> =
        labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    let port = monitor["spec"]["podMetricsEndpoints"][0]["port"].as_str().context("no port")?;
    let pods = present(namespace, &labels.join(",")).await?;
    pods.iter()
        .map(|pod| {
            let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
            let mut ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
            let found = ports.find(|it| it.name.as_deref() == Some(port));
            let found = found.with_context(|| format!("{} has no port {port}", pod.name_any()))?;
            Ok((pod.name_any(), u16::try_from(found.container_port)?))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_text_of_every_pod_passes_promtool_and_the_alert_rules_pass() {
    let namespace = Namespace::new("metrics").await.unwrap();
    let (helm, chart) = (Helm::new(&namespace, "demo").unwrap(), Chart::current());
    helm.install(&chart, &["demo.enabled=true", "operator.replicas=2"]).await.unwrap();
    eventually(SOON, async || condition(&namespace, "Ready", "True").await).await.unwrap();
    eventually(SOON, async || ready(&namespace, "taskpipeline.dev/pipeline=tasks", 2).await).await.unwrap();
    eventually(SOON, async || ready(&namespace, "app.kubernetes.io/component=operator", 2).await)
        .await
        .unwrap();
    // One event passes through, so that the counters have values.
    helm.test().await.unwrap();

    let monitors =
        helm.template(&chart, &["demo.enabled=true", "monitoring.podMonitor.enabled=true"]).await.unwrap();
    let monitors = objects(&monitors).unwrap();
    let mut pods = 0;
    for monitor in monitors.iter().filter(|object| object["kind"] == "PodMonitor") {
        let found = scraped(&namespace, monitor).await.unwrap();
        assert_eq!(found.len(), 2, "{found:?} of {monitor}");
        for (pod, port) in found {
            let forward = Forward::to(namespace.api(), &pod, port).await.unwrap();
            let answer = reqwest::get(format!("http://{}/metrics", forward.address)).await.unwrap();
            let text = answer.error_for_status().unwrap().text().await.unwrap();
            let said = promtool(&["check", "metrics"], &text).await.unwrap();
            assert_eq!(said, "", "of {pod}");
            let families: BTreeSet<_> =
                text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
            let of_others: Vec<_> = families
                .iter()
                .filter(|name| !name.starts_with("taskpipeline_") && !name.starts_with("process_"))
                .collect();
            assert!(of_others.is_empty(), "{of_others:?}");
            println!("{pod}: {} metrics in {} bytes", families.len(), text.len());
            let least = if families.contains("taskpipeline_operator_leader") { 8 } else { 30 };
            assert!(families.len() >= least, "{families:?}");
            pods += 1;
        }
    }
    assert_eq!(pods, 4, "two replicas and two operators");

    let lint = ["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"];
    println!("{}", promtool(&lint, "").await.unwrap());
    println!("{}", promtool(&["test", "rules", "alerts.test.yaml"], "").await.unwrap());
}

#[tokio::test]
async fn the_configuration_in_docker_compose_yml_passes_promtool_with_the_alert_rules() {
    let compose = &objects(COMPOSE).unwrap()[0];
    let configuration = compose["configs"]["prometheus"]["content"].as_str().unwrap();
    // In the cluster, both files are in one folder.
    let rules = format!("rule_files: [{FILES}/alerts.yaml]");
    let here = configuration.replace("rule_files: [alerts.yaml]", &rules);
    assert_ne!(here, configuration);
    let check = ["check", "config", "/dev/stdin"];
    let said = promtool(&check, &here).await.unwrap();
    assert!(said.contains("1 rule files") && said.contains("rules found"), "{said}");
    println!("{said}");
    let refused = promtool(&check, &here.replace("static_configs", "static_config")).await.unwrap_err();
    assert!(refused.to_string().contains("static_config"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn podmonitor_prometheusrule_hpa_scaledobject_and_certificate_pass_a_dry_run_against_their_real_crds() {
    let namespace = Namespace::new("dry-run").await.unwrap();
    crd_is_installed(&namespace.client).await.unwrap();
    let crds = ForeignCrds::bring(&namespace.client).await.unwrap();
    let taken = all_enabled(&namespace).await;
    crds.take_away().await.unwrap();
    let taken = taken.unwrap();
    for kind in [
        "PodMonitor",
        "PrometheusRule",
        "HorizontalPodAutoscaler",
        "ConfigMap",
        "ScaledObject",
        "Certificate",
    ] {
        assert!(taken.iter().any(|what| what.starts_with(&format!("{kind} "))), "no {kind} in {taken:?}");
    }
    println!("accepted by the API server:\n{}", taken.join("\n"));
}

/// Everything that the chart can render at once, and the example for KEDA.
async fn all_enabled(namespace: &Namespace) -> anyhow::Result<Vec<String>> {
    let values = [
        "demo.enabled=true",
        "monitoring.podMonitor.enabled=true",
        "monitoring.podMonitor.labels.release=prometheus",
        "monitoring.rules.enabled=true",
        "monitoring.rules.labels.release=prometheus",
        "monitoring.dashboard.enabled=true",
        "autoscaling.enabled=true",
        "nats.tls.issuerRef.name=internal",
        "nats.tls.issuerRef.kind=ClusterIssuer",
    ];
    let manifests = Helm::new(namespace, "demo")?.template(&Chart::current(), &values).await?;
    let dry_run = DryRun::new(namespace).await?;
    let mut taken = Vec::new();
    for object in objects(&manifests)?.iter().chain(&objects(KEDA)?) {
        taken.push(dry_run.apply(object).await?);
    }
    // This shows that the check can fail.
    let misspelt = KEDA.replace("minReplicaCount", "minReplicasCount");
    let refused = dry_run.apply(&objects(&misspelt)?[0]).await;
    ensure!(refused.is_err(), "the API server accepts a field that the CRD does not have");
    Ok(taken)
}
