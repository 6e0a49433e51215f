//! Reads settings from variables and renders them again.

use std::time::Duration;

use proptest::prelude::*;
use taskpipeline_kv::MAX_KEYS_PER_WRITE;

use super::super::{CoreSettings, Delivery, PipelineSettings, Room, Setting, Tuning};
use super::*;

const GOOD: [(&str, &str); 4] = [
    ("NATS_URL", "nats://127.0.0.1:4222"),
    ("CF_ACCOUNT_ID", "acc"),
    ("CF_NAMESPACE_ID", "ns"),
    ("CF_API_TOKEN", "secret-token\n"),
];

fn read(changes: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let lookup = |name: &str| {
        let mut all = changes.iter().chain(&GOOD);
        all.find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    let mut env = Environment::new(&lookup);
    let settings = env.settings();
    env.end(settings)
}

#[test]
fn four_variables_are_enough() {
    let settings = read(&[]).unwrap();
    assert_eq!(
        settings.kv.namespace_url.as_str(),
        "https://api.cloudflare.com/client/v4/accounts/acc/storage/kv/namespaces/ns"
    );
    assert_eq!(settings.pipeline.events.subject_prefix, "tasks");
    assert_eq!(settings.pipeline.events.queue_group, "tasks-processor");
    let Delivery::Durable(durable) = &settings.pipeline.delivery else {
        panic!("{:?}", settings.pipeline.delivery)
    };
    assert_eq!((durable.stream.as_str(), durable.replicas), ("TASKS", 1));
}

#[test]
fn a_local_base_url_needs_no_account() {
    let base = "http://127.0.0.1:8787/cdn-cgi/local/explorer/api/";
    let settings = read(&[("CF_API_BASE_URL", base), ("CF_ACCOUNT_ID", "")]).unwrap();
    assert_eq!(settings.kv.namespace_url.as_str(), format!("{base}storage/kv/namespaces/ns"));
    assert!(read(&[("CF_ACCOUNT_ID", "")]).is_err(), "Cloudflare's needs one");
}

#[test]
fn the_token_is_never_sent_to_cloudflare_unencrypted_and_elsewhere_only_with_a_warning() {
    let error = read(&[("CF_API_BASE_URL", "http://api.cloudflare.com/client/v4")]).unwrap_err();
    assert!(
        error.0.iter().any(|line| line.contains("https://") && line.contains("unencrypted")),
        "{error:?}"
    );
    let warned = |base: &str| read(&[("CF_API_BASE_URL", base)]).unwrap().kv.unencrypted().is_some();
    assert!(warned("http://kv.example/v4") && warned("http://10.0.0.1") && warned("http://[2001:db8::1]:80"));
    for base in ["http://127.0.0.1:8787", "http://localhost", "http://[::1]:1", "https://kv.example"] {
        assert!(!warned(base), "{base}");
    }
}

#[test]
fn names_that_could_be_taken_for_others_are_refused() {
    for name in ["a--b", "-a", "a-", "a.b", "a b"] {
        assert!(read(&[("STREAM_NAME", name)]).is_err(), "{name}");
        assert!(read(&[("QUEUE_GROUP", name)]).is_err(), "{name}");
    }
    assert!(read(&[("QUEUE_GROUP", "a.b"), ("DELIVERY_MODE", "Core")]).is_ok());
}

#[test]
fn a_command_that_looks_at_a_pipeline_refuses_the_names_that_a_replica_refuses() {
    let faults = |variable: (&'static str, &'static str)| {
        let lookup = |name: &str| (name == variable.0).then(|| variable.1.to_owned());
        let mut env = Environment::new(&lookup);
        let stored = env.stored();
        env.end(Some(stored)).err().map(|error| error.0.join("\n"))
    };
    assert_eq!(faults(("SUBJECT_PREFIX", "tasks")), None);
    for (name, text) in [("SUBJECT_PREFIX", "tasks.>"), ("STREAM_NAME", "a.b"), ("QUEUE_GROUP", "a b")] {
        assert!(faults((name, text)).unwrap().starts_with(name), "{name}={text}");
    }
}

#[test]
fn tuning_is_read() {
    let tuning = read(&[
        ("RETRY_DELAYS", "100ms, 2s"),
        ("RETRY_MAX_ATTEMPTS", "7"),
        ("REQUEST_BUDGET", "500/1m"),
        ("BATCH_MAX_KEYS", "20000"),
    ])
    .unwrap()
    .pipeline
    .tuning;
    assert_eq!(tuning.retry.delays, [Duration::from_millis(100), Duration::from_secs(2)]);
    assert_eq!(tuning.retry.max_attempts.get(), 7);
    assert_eq!(tuning.request_budget.requests.get(), 500);
    assert_eq!(tuning.request_budget.period, Duration::from_secs(60));
    assert_eq!(tuning.max_keys, MAX_KEYS_PER_WRITE, "Cloudflare takes no more");
}

#[test]
fn every_variable_at_fault_is_named() {
    let error = read(&[
        ("DELIVERY_MODE", "Maybe"),
        ("STREAM_MAX_AGE", "long"),
        ("STREAM_MAX_EVENT_BYTES", "1000"),
        ("LEDGER_MAX_BYTES", "2GB"),
        ("REQUEST_BUDGET", "1100"),
        ("RETRY_DELAYS", "1s,soon"),
        ("NATS_URL", "http://x y"),
        ("CF_NAMESPACE_ID", " "),
        ("CF_API_BASE_URL", "ftp://x"),
        ("SUBJECT_PREFIX", "tasks.>"),
        ("SHUTDOWN_GRACE", "soon"),
        ("NATS_USER", "me"),
    ])
    .unwrap_err();
    let named: Vec<_> = error.0.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(
        named,
        [
            "NATS_URL",
            "NATS_USER",
            "STREAM_MAX_AGE",
            "LEDGER_MAX_BYTES",
            "DELIVERY_MODE",
            "RETRY_DELAYS",
            "REQUEST_BUDGET",
            "SHUTDOWN_GRACE",
            "SUBJECT_PREFIX",
            "STREAM_MAX_EVENT_BYTES",
            "CF_API_BASE_URL",
            "CF_NAMESPACE_ID",
        ]
    );
}

#[test]
fn a_request_may_take_a_third_of_the_settle_time_and_no_more() {
    let fault = |changes: &[(&str, &str)]| read(changes).err().map(|error| error.0.join("\n"));
    let why = fault(&[("REQUEST_TIMEOUT", "11s")]).unwrap();
    assert!(
        why.starts_with("REQUEST_TIMEOUT: ") && why.contains("SETTLE_AFTER") && why.contains("30s"),
        "{why}"
    );
    assert_eq!(fault(&[("REQUEST_TIMEOUT", "10s")]), None);
    assert_eq!(fault(&[("REQUEST_TIMEOUT", "20s"), ("SETTLE_AFTER", "1m")]), None);
    assert_eq!(fault(&[("REQUEST_TIMEOUT", "11s"), ("DELIVERY_MODE", "Core")]), None);
    let settings = read(&[("SETTLE_AFTER", "6s")]).unwrap();
    assert_eq!(settings.pipeline.tuning.request_timeout, Duration::from_secs(2), "the default goes with it");
}

#[test]
fn durations_that_cannot_be_counted_are_refused() {
    for name in [
        "SHUTDOWN_GRACE",
        "STREAM_MAX_AGE",
        "ACK_WAIT",
        "SETTLE_AFTER",
        "REQUEST_TIMEOUT",
        "MIN_WRITE_INTERVAL",
    ] {
        for long in ["1000years", "18446744073709551615s", "99999999999999999999s", "87601h"] {
            let error = read(&[(name, long)]).unwrap_err();
            assert!(error.0.iter().any(|line| line.starts_with(name)), "{name}={long}: {error}");
        }
    }
    assert!(read(&[("RETRY_DELAYS", "1s,1000years")]).is_err());
    assert!(read(&[("REQUEST_BUDGET", "1100/1000years")]).is_err());
    assert!(read(&[("MIN_WRITE_INTERVAL", "87600h")]).is_ok());
}

#[test]
fn debug_shows_no_secret() {
    let settings = read(&[
        ("NATS_URL", "nats://me:hidden-1@127.0.0.1:4222"),
        ("NATS_USER", "me"),
        ("NATS_PASSWORD", "hidden-2"),
    ])
    .unwrap();
    let shown = format!("{settings:?}");
    assert!(!shown.contains("hidden") && !shown.contains("secret-token"), "{shown}");
}

prop_compose! {
    fn durations()(seconds in 1_u64..10_000_000) -> Duration {
        Duration::from_secs(seconds)
    }
}

prop_compose! {
    fn tunings()(
        attempts in 1_u32..100,
        delays in prop::collection::vec(durations(), 1..6),
        requests in 1_u32..10_000,
        period in durations(),
        timeout in durations(),
        interval in durations(),
        keys in 1_u16..=10_000,
    ) -> Tuning {
        let mut tuning = Tuning { request_timeout: timeout, min_write_interval: interval, ..Tuning::default() };
        tuning.retry.max_attempts = attempts.try_into().unwrap();
        tuning.retry.delays = delays;
        tuning.request_budget.requests = requests.try_into().unwrap();
        tuning.request_budget.period = period;
        tuning.max_keys = keys.try_into().unwrap();
        tuning
    }
}

fn deliveries() -> impl Strategy<Value = Delivery> {
    let size = || prop::option::of((1_u32..1_000_000).prop_map(Size::mebibytes));
    let core = (1_u32..1_000)
        .prop_map(|replicas| Delivery::Core(CoreSettings { replicas: replicas.try_into().unwrap() }));
    let durable = ("[A-Za-z0-9_]{1,20}", 1_usize..6, durations(), 1_024..=64 << 20, durations(), durations());
    let durable = (durable, size(), size(), size()).prop_map(|(fields, events, ledger, dead_letters)| {
        let (stream, replicas, max_age, max_event_bytes, ack_wait, settle_after) = fields;
        let room = Room { events, ledger, dead_letters };
        Delivery::Durable(DurableSettings {
            stream,
            replicas,
            max_age,
            max_event_bytes,
            room,
            ack_wait,
            settle_after,
        })
    });
    prop_oneof![core, durable]
}

proptest! {
    /// A pod reads exactly the settings that the operator has checked.
    #[test]
    fn the_variables_of_settings_are_read_as_the_same_settings(
        (prefix, group) in ("[a-z]{1,9}([.][a-z]{1,9})?", "[a-z]{1,9}(-[a-z]{1,9})?"),
        (delivery, tuning, shutdown_grace) in (deliveries(), tunings(), durations()),
    ) {
        let events = EventSettings { subject_prefix: prefix, queue_group: group };
        let settings = PipelineSettings { events, delivery, tuning, shutdown_grace };
        let variables = settings.variables();
        let lookup = |name: &str| {
            variables.iter().find(|(setting, _)| setting.variable() == name).map(|(_, text)| text.clone())
        };
        let mut env = Environment::new(&lookup);
        prop_assert_eq!(env.pipeline(), settings.clone());
        let faults: Vec<_> = settings.faults().iter().map(crate::settings::Fault::by_variable).collect();
        prop_assert_eq!(env.problems, faults);
    }
}

/// The README and `.env.example` show the defaults to people.
#[test]
fn the_readme_and_the_example_name_the_defaults_that_are_used() {
    let mut wanted: Vec<(&str, String)> = PipelineSettings::default()
        .variables()
        .into_iter()
        .map(|(setting, text)| (setting.variable(), text))
        .collect();
    wanted.push((Setting::CoreReplicas.variable(), CoreSettings::default().replicas.to_string()));
    let example = include_str!("../../../../../.env.example");
    let readme = include_str!("../../../../../README.md");
    for (name, default) in &wanted {
        let line =
            example.lines().find_map(|line| line.trim_start_matches('#').strip_prefix(&format!("{name}=")));
        assert_eq!(line, Some(default.as_str()), "{name} in .env.example");
        // A row may describe several variables, in the order of their defaults.
        let rows = readme.lines().map(|line| line.split('|').collect::<Vec<_>>());
        let row = rows.filter(|cells| cells.len() > 3).find(|cells| cells[1].contains(&format!("`{name}`")));
        let cells = row.unwrap_or_else(|| panic!("{name} is not in the README"));
        let position = cells[1].split(',').position(|text| text.contains(&format!("`{name}`"))).unwrap();
        let defaults: Vec<_> = cells[2].split("`, ").map(|text| text.trim().trim_matches('`')).collect();
        assert_eq!(defaults.get(position).copied(), Some(default.as_str()), "{name} in the README");
    }
}
