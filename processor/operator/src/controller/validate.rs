//! Checks a pipeline and the Secrets that it refers to. Pure: returns the settings to build from, or the fault that a user has
//! to correct, with a message for that user.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use kube::ResourceExt;

use crate::api::TaskPipeline;
use taskpipeline_pipeline::settings::{PipelineSettings, scheme_fault};

use super::dereference::{Found, References, SecretFacts};
use super::invalid::{Invalid, invalid};
use super::policy::Policy;

/// The key of a Secret with a certificate authority, as cert-manager uses it.
pub(crate) const CA: &str = "ca.crt";

/// A valid pipeline, ready to build.
#[derive(Clone, Debug)]
pub(crate) struct Validated {
    /// The settings of the replicas at their start.
    pub(crate) settings: PipelineSettings,
    pub(crate) kv: SecretFacts,
    pub(crate) nats_auth: Option<NatsAuth>,
    pub(crate) nats_ca: Option<NatsCa>,
}

/// How the replicas log in to NATS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NatsAuth {
    pub(crate) secret: SecretFacts,
    pub(crate) login: Login,
    /// Whether the Secret has a client certificate and its key.
    pub(crate) has_certificate: bool,
}

/// The Secret with the certificate authority of the servers, in its key `ca.crt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NatsCa {
    pub(crate) secret: String,
}

/// The kind of login, by the keys of the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    UserAndPassword,
    Token,
    Credentials,
    Nkey,
    /// No login: the Secret has only certificates.
    None,
}

/// Checks a pipeline and the Secrets that it refers to.
///
/// # Errors
/// The first fault that a user has to correct.
pub(crate) fn validate(
    pipeline: &TaskPipeline,
    found: &References,
    policy: &Policy,
) -> Result<Validated, Invalid> {
    let spec = &pipeline.spec;
    let settings =
        PipelineSettings::try_from(spec).map_err(|error| invalid("InvalidSpec", error.to_string()))?;
    policy.allows(pipeline, &settings)?;
    let hosts = hosts(&spec.nats.url)?;
    let kv = there(&found.kv, "spec.kv.secretRef")?;
    is_for(kv, pipeline, "spec.kv.secretRef")?;
    for key in ["CF_NAMESPACE_ID", "CF_API_TOKEN"] {
        has(kv, key, "spec.kv.secretRef")?;
    }
    // Another server than Cloudflare's may not need an account.
    if !kv.keys.contains("CF_API_BASE_URL") {
        has(kv, "CF_ACCOUNT_ID", "spec.kv.secretRef")?;
    }
    let nats_auth = found.nats_auth.as_ref().map(|auth| nats_auth(auth, pipeline, &hosts)).transpose()?;
    let nats_ca = nats_ca(found)?;
    Ok(Validated { settings, kv: kv.clone(), nats_auth, nats_ca })
}

fn there<'a>(found: &'a Found, field: &str) -> Result<&'a SecretFacts, Invalid> {
    match found {
        Found::There(facts) => Ok(facts),
        Found::Missing(name) => Err(invalid(
            "SecretMissing",
            format!(
                "the Secret {name} ({field}) does not exist: create it, and the operator continues within a minute"
            ),
        )),
    }
}

/// Checks that the pipeline may use the Secret. Otherwise editors of pipelines could use the Secret of another pipeline.
fn is_for(secret: &SecretFacts, pipeline: &TaskPipeline, field: &str) -> Result<(), Invalid> {
    let (name, own) = (&secret.name, pipeline.name_any());
    let why = match (&secret.pipelines, &secret.claimed_by) {
        (Some(pipelines), _) if pipelines.iter().any(|name| *name == own || name == "*") => return Ok(()),
        (None, None) => return Ok(()),
        (Some(pipelines), _) => format!("is for the pipelines {:?} only", pipelines.join(", ")),
        (None, Some(other)) => {
            format!("is used by the pipeline {other}, and does not list the pipelines that may use it")
        }
    };
    Err(invalid(
        "SecretNotForThisPipeline",
        format!(
            "the Secret {name} ({field}) {why}: if {own} may use it, list all allowed pipelines in its key `pipelines`, \
             separated by commas"
        ),
    ))
}

fn has(secret: &SecretFacts, key: &str, field: &str) -> Result<(), Invalid> {
    if secret.keys.contains(key) {
        return Ok(());
    }
    let name = &secret.name;
    Err(invalid(
        "SecretKeyMissing",
        format!("the Secret {name} ({field}) has no {key}, or {key} is empty: set it"),
    ))
}

fn nats_auth(found: &Found, pipeline: &TaskPipeline, hosts: &[Address]) -> Result<NatsAuth, Invalid> {
    let secret = there(found, "spec.nats.authSecretRef")?;
    is_for(secret, pipeline, "spec.nats.authSecretRef")?;
    let name = &secret.name;
    let has = |key| secret.keys.contains(key);
    let (has_ca, has_certificate) = (has(CA), has("tls.crt"));
    if has_certificate != has("tls.key") {
        return Err(invalid(
            "SecretKeyMissing",
            format!(
                "the Secret {name} (spec.nats.authSecretRef) must have both tls.crt and tls.key, or neither"
            ),
        ));
    }
    let login = match ["creds", "token", "nkey", "user", "password"].map(has) {
        [true, false, false, false, false] => Login::Credentials,
        [false, true, false, false, false] => Login::Token,
        [false, false, true, false, false] => Login::Nkey,
        [false, false, false, true, true] => Login::UserAndPassword,
        [false, false, false, false, false] if has_ca || has_certificate => Login::None,
        _ => {
            return Err(invalid(
                "SecretKeyMissing",
                format!(
                    "the Secret {name} (spec.nats.authSecretRef) must have exactly one login: creds, token, nkey, or user \
                     and password"
                ),
            ));
        }
    };
    // Otherwise editors of a pipeline could send a login that they may not read to their own host.
    if (login != Login::None || has_certificate)
        && let Some(host) = hosts.iter().find(|host| !secret.hosts.iter().any(|allowed| host.is(allowed)))
    {
        return Err(invalid(
            "HostNotAllowed",
            format!(
                "the Secret {name} (spec.nats.authSecretRef) may not be sent to {host}: if the host is right, add it to the key \
                 `hosts` of the Secret"
            ),
        ));
    }
    Ok(NatsAuth { secret: secret.clone(), login, has_certificate })
}

/// Finds the certificate authority. It is not secret, so any pipeline may refer to it.
fn nats_ca(found: &References) -> Result<Option<NatsCa>, Invalid> {
    if let Some(ca) = &found.nats_ca {
        let secret = there(ca, "spec.nats.caSecretRef")?;
        has(secret, CA, "spec.nats.caSecretRef")?;
        return Ok(Some(NatsCa { secret: secret.name.clone() }));
    }
    Ok(match &found.nats_auth {
        Some(Found::There(auth)) if auth.keys.contains(CA) => Some(NatsCa { secret: auth.name.clone() }),
        _ => None,
    })
}

/// The address of a server.
struct Address {
    scheme: String,
    host: String,
    port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.host)
    }
}

impl Address {
    /// Whether an entry of `hosts` allows this address. `allowed`: a host, with an optional scheme and port that must match too.
    fn is(&self, allowed: &str) -> bool {
        let (scheme, rest) =
            allowed.split_once("://").map_or((None, allowed), |(scheme, rest)| (Some(scheme), rest));
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            // An IPv6 address without brackets has no port.
            None if rest.matches(':').count() > 1 => (rest, None),
            None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        host == self.host
            && scheme.is_none_or(|scheme| scheme == self.scheme)
            && port.is_none_or(|port| port.parse() == Ok(self.port))
    }
}

/// The addresses in a list of URLs.
fn hosts(urls: &str) -> Result<Vec<Address>, Invalid> {
    let wrong = |url: &str| {
        // Without the address itself, because it may contain a password.
        let scheme = url.split("://").next().unwrap_or_default();
        let what =
            "must be addresses such as nats://host:4222, without user and password, separated by commas";
        let scheme: String = scheme.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        invalid("InvalidUrl", format!("spec.nats.url: {what} (one begins with {scheme:?})"))
    };
    let schemes = urls.split(',').map(|url| url.trim().split("://").next().unwrap_or_default());
    if let Some(fault) = scheme_fault(schemes) {
        return Err(invalid("InvalidUrl", format!("spec.nats.url: {fault}")));
    }
    urls.split(',')
        .map(|url| {
            let parsed = reqwest::Url::parse(url.trim()).map_err(|_| wrong(url))?;
            let is_bare = parsed.username().is_empty() && parsed.password().is_none();
            let is_known = matches!(parsed.scheme(), "nats" | "tls" | "ws" | "wss");
            let host = parsed.host_str().filter(|_| is_bare && is_known).ok_or_else(|| wrong(url))?;
            let default = match parsed.scheme() {
                "ws" => 80,
                "wss" => 443,
                _ => 4222,
            };
            Ok(Address {
                scheme: parsed.scheme().to_owned(),
                host: host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase(),
                port: parsed.port_or_known_default().unwrap_or(default),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(name: &str, keys: &[&str], hosts: &[&str]) -> Found {
        Found::There(SecretFacts {
            name: name.to_owned(),
            uid: "u".to_owned(),
            resource_version: "1".to_owned(),
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            pipelines: None,
            claimed_by: None,
        })
    }

    const ALL: [&str; 3] = ["CF_ACCOUNT_ID", "CF_NAMESPACE_ID", "CF_API_TOKEN"];

    fn pipeline(url: &str) -> TaskPipeline {
        let spec = json!({"nats": {"url": url}, "kv": {"secretRef": {"name": "cloudflare-kv"}}});
        TaskPipeline::new("tasks", serde_json::from_value(spec).unwrap())
    }

    fn reason(url: &str, kv: Found, nats_auth: Option<Found>) -> &'static str {
        reason_of(url, &References { kv, nats_auth, nats_ca: None })
    }

    fn reason_of(url: &str, found: &References) -> &'static str {
        match validate(&pipeline(url), found, &Policy::default()) {
            Ok(_) => "",
            Err(invalid) => invalid.reason,
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let kv = || secret("cloudflare-kv", &ALL, &[]);
        assert_eq!(reason("nats://n:4222", kv(), None), "");
        assert_eq!(reason("http://n:4222", kv(), None), "InvalidUrl");
        assert_eq!(reason("nats://u:p@n:4222", kv(), None), "InvalidUrl");
        assert_eq!(reason("nats://n", Found::Missing("x".to_owned()), None), "SecretMissing");
        assert_eq!(reason("nats://n", secret("x", &ALL[1..], &[]), None), "SecretKeyMissing");
        let elsewhere = secret("x", &["CF_API_BASE_URL", ALL[1], ALL[2]], &[]);
        assert_eq!(reason("nats://n", elsewhere, None), "");
    }

    /// The operator reports settings that a pod would refuse at its start, with the name of the field.
    #[test]
    fn settings_that_no_replica_would_start_with_are_invalid() {
        let found = References { kv: secret("cloudflare-kv", &ALL, &[]), nats_auth: None, nats_ca: None };
        let message = |change: serde_json::Value| {
            let mut pipeline = pipeline("nats://n");
            let mut spec = serde_json::to_value(&pipeline.spec).unwrap();
            for (field, value) in change.as_object().unwrap() {
                match spec.get_mut(field).and_then(serde_json::Value::as_object_mut) {
                    Some(there) => there.extend(value.as_object().unwrap().clone()),
                    None => spec[field] = value.clone(),
                }
            }
            pipeline.spec = serde_json::from_value(spec).unwrap();
            let invalid = validate(&pipeline, &found, &Policy::default()).unwrap_err();
            assert_eq!(invalid.reason, "InvalidSpec", "{}", invalid.message);
            invalid.message
        };
        for (change, field) in [
            (
                json!({"processor": {"env": {"SHUTDOWN_GRACE": "soon"}}}),
                "spec.processor.env.SHUTDOWN_GRACE: ",
            ),
            (json!({"processor": {"env": {"ACK_WAIT": "later"}}}), "spec.processor.env.ACK_WAIT: "),
            (json!({"delivery": {"stream": {"maxAge": "20s"}}}), "spec.delivery.stream.maxAge: "),
            (json!({"delivery": {"stream": {"name": "a--b"}}}), "spec.delivery.stream.name: "),
            (json!({"delivery": {"stream": {"maxEventBytes": 10}}}), "spec.delivery.stream.maxEventBytes: "),
            (json!({"delivery": {"stream": {"replicas": 0}}}), "spec.delivery.stream.replicas: "),
            (json!({"kv": {"settleAfter": "5s"}}), "spec.kv.requestTimeout: "),
            (json!({"kv": {"requestTimeout": "0s"}}), "spec.kv.requestTimeout: "),
            (json!({"kv": {"batch": {"maxKeys": 10_001}}}), "spec.kv.batch.maxKeys: "),
            (json!({"retry": {"delays": []}}), "spec.retry.delays: "),
        ] {
            let said = message(change);
            assert!(said.starts_with(field), "{field} in {said}");
        }
    }

    #[test]
    fn a_certificate_authority_takes_the_place_of_that_of_the_login() {
        let found = |nats_ca| References {
            kv: secret("cloudflare-kv", &ALL, &[]),
            nats_auth: Some(secret("login", &["token", CA], &["n"])),
            nats_ca,
        };
        let ca = |found: References| {
            validate(&pipeline("tls://n"), &found, &Policy::default()).map(|validated| validated.nats_ca)
        };
        assert_eq!(ca(found(None)), Ok(Some(NatsCa { secret: "login".to_owned() })));
        let own = Some(secret("servers", &["tls.crt", "tls.key", CA], &[]));
        assert_eq!(ca(found(own)), Ok(Some(NatsCa { secret: "servers".to_owned() })));
        assert_eq!(reason_of("tls://n", &found(Some(Found::Missing("x".to_owned())))), "SecretMissing");
        let without = Some(secret("servers", &["tls.crt", "tls.key"], &[]));
        assert_eq!(reason_of("tls://n", &found(without)), "SecretKeyMissing");
    }

    #[test]
    fn credentials_go_only_to_hosts_that_their_secret_names() {
        let kv = || secret("cloudflare-kv", &ALL, &[]);
        let auth = |keys: &[&str], hosts: &[&str]| Some(secret("auth", keys, hosts));
        let password = &["user", "password"];
        assert_eq!(reason("nats://n:4222", kv(), auth(password, &["n"])), "");
        assert_eq!(reason("nats://N:4222,nats://m", kv(), auth(password, &["n", "m"])), "");
        assert_eq!(reason("nats://evil", kv(), auth(password, &["n"])), "HostNotAllowed");
        assert_eq!(reason("nats://n,nats://evil", kv(), auth(password, &["n"])), "HostNotAllowed");
        assert_eq!(reason("nats://n", kv(), auth(password, &[])), "HostNotAllowed");
        assert_eq!(reason("nats://n", kv(), auth(&["user"], &["n"])), "SecretKeyMissing");
        assert_eq!(reason("nats://n", kv(), auth(&["ca.crt"], &[])), "", "nothing that must not get out");
        let certificate = &["tls.crt", "tls.key"];
        assert_eq!(reason("tls://n", kv(), auth(certificate, &["n"])), "");
        assert_eq!(reason("tls://evil", kv(), auth(certificate, &["n"])), "HostNotAllowed");
        assert_eq!(reason("tls://n", kv(), auth(&["tls.crt", "nkey"], &["n"])), "SecretKeyMissing");
        assert_eq!(reason("tls://n", kv(), auth(&["nkey"], &["n"])), "");
        assert_eq!(reason("tls://n", kv(), auth(&["nkey", "creds"], &["n"])), "SecretKeyMissing");
    }

    #[test]
    fn a_host_may_be_allowed_with_its_scheme_and_port_alone() {
        let kv = || secret("cloudflare-kv", &ALL, &[]);
        let reason = |url: &str, allowed: &str| {
            reason(url, kv(), Some(secret("auth", &["user", "password"], &[allowed])))
        };
        for allowed in ["n", "n:4222", "tls://n", "tls://n:4222"] {
            assert_eq!(reason("tls://n", allowed), "", "{allowed}");
        }
        for (url, allowed) in
            [("nats://n", "tls://n"), ("tls://n:4223", "n:4222"), ("tls://m", "tls://n"), ("tls://n", "n:x")]
        {
            assert_eq!(reason(url, allowed), "HostNotAllowed", "{url} by {allowed}");
        }
        for allowed in ["::1", "[::1]", "[::1]:4222", "nats://[::1]:4222"] {
            assert_eq!(reason("nats://[::1]", allowed), "", "{allowed}");
        }
        assert_eq!(reason("wss://n", "wss://n:443"), "");
    }

    #[test]
    fn a_secret_is_for_the_pipelines_that_it_names_or_for_its_first() {
        let secret = |pipelines: Option<&str>, claimed_by: Option<&str>| {
            let Found::There(facts) = secret("cloudflare-kv", &ALL, &[]) else { panic!() };
            Found::There(SecretFacts {
                pipelines: pipelines.map(|names| names.split(',').map(str::to_owned).collect()),
                claimed_by: claimed_by.map(str::to_owned),
                ..facts
            })
        };
        let refused = "SecretNotForThisPipeline";
        for (pipelines, claimed_by, expected) in [
            (None, None, ""),
            (None, Some("shop"), refused),
            (Some("tasks"), None, ""),
            (Some("*"), Some("shop"), ""),
            (Some("shop,tasks"), Some("shop"), ""),
            (Some("shop"), None, refused),
            (Some(""), None, refused),
        ] {
            let found = secret(pipelines, claimed_by);
            assert_eq!(reason("nats://n", found.clone(), None), expected, "{pipelines:?} {claimed_by:?}");
            let kv = self::secret("cloudflare-kv", &ALL, &[]);
            let Found::There(facts) = found else { panic!() };
            let facts =
                SecretFacts { keys: ["token".to_owned()].into(), hosts: vec!["n".to_owned()], ..facts };
            assert_eq!(
                reason("nats://n", kv, Some(Found::There(facts))),
                expected,
                "{pipelines:?} {claimed_by:?}"
            );
        }
    }

    #[test]
    fn addresses_that_break_anothers_promise_are_invalid() {
        let kv = || secret("cloudflare-kv", &ALL, &[]);
        assert_eq!(reason("wss://n,wss://m", kv(), None), "");
        assert_eq!(reason("wss://n,ws://m", kv(), None), "InvalidUrl");
        assert_eq!(reason("wss://n,nats://m", kv(), None), "InvalidUrl");
    }
}
