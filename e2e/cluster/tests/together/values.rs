//! Values of the chart, in pairs: Helm, the schema and the API server accept every combination of two settings, and
//! the pods fit "restricted" pod security.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use taskpipeline_e2e_cluster::{Chart, DryRun, Helm, Namespace, crd_is_installed, objects};

/// The factors, each with its tested settings. `;` separates the values of one setting.
const FACTORS: &[(&str, &[&str])] = &[
    ("names", &["", "fullnameOverride=short", "nameOverride=other"]),
    ("image", &["", "image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"]),
    (
        "pull",
        &[
            "",
            "imagePullSecrets[0].name=registry;nats.imagePullSecrets[0].name=registry",
            "image.pullPolicy=Always",
        ],
    ),
    ("crds", &["", "crds.upgrade=false"]),
    ("operator", &["", "operator.replicas=2", "operator.replicas=3;operator.allNamespaces=true"]),
    (
        "log",
        &["", "operator.logFormat=text;operator.extraEnv[0].name=RUST_LOG;operator.extraEnv[0].value=debug"],
    ),
    (
        "place",
        &[
            "",
            "operator.nodeSelector.disk=ssd;operator.tolerations[0].operator=Exists;operator.priorityClassName=system-cluster-critical",
            "nats.nodeSelector.disk=ssd;nats.tolerations[0].operator=Exists;nats.podAnnotations.a=b",
            "pipeline.spec.processor.priorityClassName=high;nats.priorityClassName=system-cluster-critical",
        ],
    ),
    (
        "resources",
        &[
            "",
            "operator.resources.limits.memory=300Mi;nats.resources.requests.cpu=1;nats.extraEnv[0].name=GOMEMLIMIT;nats.extraEnv[0].value=400MiB",
        ],
    ),
    ("security", &["", "operator.podSecurityContext.fsGroup=1000;nats.securityContext.runAsUser=1000"]),
    ("kv", &["", "kv.secretName=mine", "kv.accountId=a;kv.namespaceId=b;kv.apiToken=c", "demo.enabled=true"]),
    (
        "nats",
        &[
            "",
            "nats.replicas=3;nats.jetstream.storageClassName=fast;nats.jetstream.maxFileStore=5GB",
            "nats.enabled=false;nats.url=tls://nats.example:4222;nats.authSecretName=mine",
            "nats.networkPolicy.enabled=false;nats.auth.processorSecret=mine;nats.auth.producers[0].name=producer;nats.auth.producers[0].secretName=his",
        ],
    ),
    (
        "pipeline",
        &[
            "",
            "pipeline.enabled=false",
            "pipeline.name=orders;pipeline.spec.replicas=4;pipeline.spec.retry.maxAttempts=7",
            "pipeline.spec.delivery.mode=Core;pipeline.spec.suspend=true",
            "pipeline.spec.kv.batch.maxKeys=5000;pipeline.spec.kv.minWriteInterval=5s",
        ],
    ),
    ("test", &["", "test.timeout=2m"]),
    ("monitoring", &["", "monitoring.dashboard.enabled=true;monitoring.dashboard.labels.grafana=ours"]),
];

/// The smallest expected number of sets.
const SETS: usize = 30;

/// Returns sets with one setting of each factor, so that each pair of settings of two factors is in a set.
///
/// Each next set is the candidate with the most pairs that no earlier set has.
fn pairwise() -> Vec<Vec<usize>> {
    let mut missing = BTreeSet::new();
    for (i, (_, one)) in FACTORS.iter().enumerate() {
        for (j, (_, other)) in FACTORS.iter().enumerate().skip(i + 1) {
            for a in 0..one.len() {
                missing.extend((0..other.len()).map(|b| (i, a, j, b)));
            }
        }
    }
    // A plain generator gives the same sets each time.
    let mut state = 1_u64;
    let mut dice = |sides: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % sides
    };
    let mut sets: Vec<Vec<usize>> = Vec::new();
    while !missing.is_empty() || sets.len() < SETS {
        let candidates: Vec<Vec<usize>> =
            (0..200).map(|_| FACTORS.iter().map(|(_, settings)| dice(settings.len())).collect()).collect();
        let news =
            |set: &Vec<usize>| missing.iter().filter(|(i, a, j, b)| set[*i] == *a && set[*j] == *b).count();
        let best = candidates.into_iter().max_by_key(news).unwrap();
        missing.retain(|(i, a, j, b)| !(best[*i] == *a && best[*j] == *b));
        sets.push(best);
    }
    sets
}

fn values(set: &[usize]) -> Vec<&'static str> {
    let settings = FACTORS.iter().zip(set).map(|((_, settings), chosen)| settings[*chosen]);
    settings.flat_map(|setting| setting.split(';')).filter(|value| !value.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pairwise_values_pass_lint_the_schema_and_a_server_side_dry_run_under_restricted_pod_security() {
    let namespace = Namespace::new("values").await.unwrap();
    crd_is_installed(&namespace.client).await.unwrap();
    let (helm, chart) = (Helm::new(&namespace, "demo").unwrap(), Chart::current());
    let dry_run = DryRun::new(&namespace).await.unwrap();
    let sets = pairwise();
    let (mut asked, mut kinds) = (0, BTreeSet::new());
    for (number, set) in sets.iter().enumerate() {
        let values = values(set);
        helm.lint(&chart, &values).await.unwrap_or_else(|error| panic!("{values:?}: {error}"));
        let manifests = helm.template(&chart, &values).await.unwrap();
        let all = objects(&manifests).unwrap();
        assert!(all.len() > 5, "{number}: {} objects", all.len());
        for object in all {
            kinds.insert(object["kind"].as_str().unwrap_or_default().to_owned());
            dry_run.apply(&object).await.unwrap_or_else(|error| panic!("{values:?}: {error:#}"));
            let has_pod = dry_run.pod(&object).await.unwrap_or_else(|error| panic!("{values:?}: {error:#}"));
            asked += 1 + u32::from(has_pod);
        }
    }
    println!("{} sets of values, {asked} dry runs of {} kinds: {kinds:?}", sets.len(), kinds.len());
    assert!(sets.len() >= SETS && kinds.len() >= 14, "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_in_a_secret_and_nowhere_else() {
    let namespace = Namespace::new("token").await.unwrap();
    crd_is_installed(&namespace.client).await.unwrap();
    let (helm, chart) = (Helm::new(&namespace, "demo").unwrap(), Chart::current());
    let values = ["kv.accountId=a", "kv.namespaceId=b", "kv.apiToken=cloudflares-own", "crds.upgrade=false"];
    let has =
        |text: &str| text.contains("cloudflares-own") || text.contains(&BASE64.encode("cloudflares-own"));
    let kinds: Vec<_> = objects(&helm.template(&chart, &values).await.unwrap())
        .unwrap()
        .into_iter()
        .filter(|object| has(&object.to_string()))
        .map(|object| object["kind"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(kinds, ["Secret"]);
    let said = helm.dry_run(&chart, &values).await.unwrap();
    assert!(said.contains("NOTES") && !has(&said), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_is_refused_with_words_that_say_what() {
    let namespace = Namespace::new("typos").await.unwrap();
    let (helm, chart) = (Helm::new(&namespace, "demo").unwrap(), Chart::current());
    for (value, said) in [
        ("operator.replica=2", "replica"),
        ("nats.replicas=2", "replicas"),
        ("nats.jetstream.sizes=1Gi", "sizes"),
        ("image.digest=latest", "digest"),
        ("demo.enable=true", "enable"),
        ("kv.token=x", "token"),
        ("test.timeout=long", "timeout"),
        ("pipeline.name=Tasks", "name"),
        ("nats.enabled=false", "nats.url"),
        ("kv.apiToken=x", "kv.accountId"),
        ("pipeline.spec.nats.queueGroup=other", "nats.pipelines"),
    ] {
        let refused = helm.template(&chart, &[value]).await.expect_err(value).to_string();
        assert!(refused.contains(said), "{value}: {refused}");
    }
    // The API server knows fields that the chart's schema does not.
    crd_is_installed(&namespace.client).await.unwrap();
    let typo = [
        "pipeline.spec.retry.maxAttemps=3",
        "crds.upgrade=false",
        "nats.enabled=false",
        "nats.url=nats://x:4222",
    ];
    let refused = helm.install(&chart, &typo).await.expect_err("a typo in the spec").to_string();
    assert!(refused.contains("maxAttemps"), "{refused}");
}
