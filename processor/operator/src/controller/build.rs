//! Builds the objects of a validated pipeline. Pure. The replica count is in [`super::replicas`].

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
    KeyToPath, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretKeySelector, SecretVolumeSource, SecurityContext, Service,
    ServiceAccount, ServicePort, ServiceSpec, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};

use taskpipeline_pipeline::settings::Setting;

use crate::api::TaskPipeline;

use super::dereference::SecretFacts;
use super::names::{self, labels, selector};
use super::validate::{CA, Login, NatsAuth, NatsCa, Validated};

/// The port of health and metrics.
const PORT: i32 = 3001;

/// The time that a pod may take to end after its drain, in seconds.
const AFTER_DRAIN: i64 = 10;

/// The mount path of the Secret with the login for NATS.
const NATS_AUTH: &str = "/etc/taskpipeline/nats-auth";

/// The mount path of the certificate authority of the servers.
const NATS_CA: &str = "/etc/taskpipeline/nats-ca";

/// The directory with the last settings of a replica, for a restart while the API server is unavailable.
const STATE: &str = "/var/lib/taskpipeline";

/// The image of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) name: String,
    /// Always, IfNotPresent or Never.
    pub(crate) pull_policy: Option<String>,
    /// The names of the Secrets for pulling the image.
    pub(crate) pull_secrets: Vec<String>,
}

/// All objects of a pipeline, in the order in which they are applied: the workload comes last.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Objects {
    pub(crate) service_account: ServiceAccount,
    pub(crate) role: Role,
    pub(crate) role_binding: RoleBinding,
    pub(crate) service: Service,
    pub(crate) disruption_budget: PodDisruptionBudget,
    pub(crate) deployment: Deployment,
}

/// All objects of a validated pipeline, without the replica count.
pub(crate) fn build(pipeline: &TaskPipeline, validated: &Validated, image: &Image) -> Objects {
    Objects {
        service_account: ServiceAccount {
            metadata: metadata(pipeline),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        },
        role: role(pipeline),
        role_binding: role_binding(pipeline),
        service: service(pipeline),
        disruption_budget: disruption_budget(pipeline),
        deployment: deployment(pipeline, validated, image),
    }
}

fn metadata(pipeline: &TaskPipeline) -> ObjectMeta {
    ObjectMeta {
        name: Some(names::owned(&pipeline.name_any())),
        namespace: pipeline.namespace(),
        labels: Some(labels(pipeline)),
        owner_references: pipeline.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// The rights of a replica: it reads its own pipeline, and writes conditions into the status.
fn role(pipeline: &TaskPipeline) -> Role {
    let rule = |resource: &str, verbs: &[&str]| PolicyRule {
        api_groups: Some(vec![TaskPipeline::group(&()).into_owned()]),
        resources: Some(vec![resource.to_owned()]),
        resource_names: Some(vec![pipeline.name_any()]),
        verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        ..PolicyRule::default()
    };
    Role {
        metadata: metadata(pipeline),
        rules: Some(vec![
            rule("taskpipelines", &["get", "list", "watch"]),
            rule("taskpipelines/status", &["patch"]),
        ]),
    }
}

fn role_binding(pipeline: &TaskPipeline) -> RoleBinding {
    let name = names::owned(&pipeline.name_any());
    RoleBinding {
        metadata: metadata(pipeline),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name,
            namespace: pipeline.namespace(),
            ..Subject::default()
        }]),
    }
}

/// A headless Service for Prometheus and for users.
fn service(pipeline: &TaskPipeline) -> Service {
    Service {
        metadata: metadata(pipeline),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            selector: Some(selector(pipeline)),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                port: PORT,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String("http".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn disruption_budget(pipeline: &TaskPipeline) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(pipeline),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(match_labels(pipeline)),
            // A replica that does not become ready must not block the drain of a node.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

fn match_labels(pipeline: &TaskPipeline) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(pipeline)), ..LabelSelector::default() }
}

fn deployment(pipeline: &TaskPipeline, validated: &Validated, image: &Image) -> Deployment {
    Deployment {
        metadata: metadata(pipeline),
        spec: Some(DeploymentSpec {
            selector: match_labels(pipeline),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            revision_history_limit: Some(3),
            template: template(pipeline, validated, image),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

fn template(pipeline: &TaskPipeline, validated: &Validated, image: &Image) -> PodTemplateSpec {
    let processor = &pipeline.spec.processor;
    // The operator's labels come last, so they replace those of the spec.
    let mut all_labels = processor.labels.clone();
    all_labels.extend(labels(pipeline));
    let mut annotations = processor.annotations.clone();
    annotations.extend(seen_secrets(validated));
    annotations.insert("kubectl.kubernetes.io/default-container".to_owned(), "processor".to_owned());
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(all_labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(names::owned(&pipeline.name_any())),
            automount_service_account_token: Some(true),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(grace(validated) + AFTER_DRAIN),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(65_532),
                run_as_group: Some(65_532),
                fs_group: Some(65_532),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            image_pull_secrets: none_if_empty(
                image
                    .pull_secrets
                    .iter()
                    .map(|name| k8s_openapi::api::core::v1::LocalObjectReference { name: name.clone() })
                    .collect(),
            ),
            node_selector: Some(processor.node_selector.clone()).filter(|labels| !labels.is_empty()),
            tolerations: none_if_empty(processor.tolerations.clone()),
            affinity: processor.affinity.clone(),
            priority_class_name: processor.priority_class_name.clone(),
            topology_spread_constraints: Some(
                ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
                    .map(|key| TopologySpreadConstraint {
                        label_selector: Some(match_labels(pipeline)),
                        max_skew: 1,
                        topology_key: key.to_owned(),
                        when_unsatisfiable: "ScheduleAnyway".to_owned(),
                        ..TopologySpreadConstraint::default()
                    })
                    .to_vec(),
            ),
            containers: vec![container(pipeline, validated, image)],
            volumes: Some(volumes(validated)),
            ..PodSpec::default()
        }),
    }
}

/// Annotations with the versions of the Secrets, so that a changed Secret rolls the pods. They contain no digest of the values,
/// because a digest would confirm a guess. The Secret of the certificate authority is omitted: replicas read it at each
/// connection, and cert-manager changes it at each renewal of the servers' certificate.
fn seen_secrets(validated: &Validated) -> BTreeMap<String, String> {
    let seen = |secret: &SecretFacts| format!("{}/{}", secret.uid, secret.resource_version);
    let kv = ("taskpipeline.dev/kv-secret".to_owned(), seen(&validated.kv));
    let auth = validated.nats_auth.as_ref();
    let auth = auth.map(|auth| ("taskpipeline.dev/nats-auth-secret".to_owned(), seen(&auth.secret)));
    std::iter::once(kv).chain(auth).collect()
}

/// The longest drain, in seconds.
fn grace(validated: &Validated) -> i64 {
    i64::try_from(validated.settings.shutdown_grace.as_secs()).unwrap_or(i64::MAX / 2)
}

fn container(pipeline: &TaskPipeline, validated: &Validated, image: &Image) -> Container {
    let probe = |path: &str, period: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    let quantities = |all: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        all.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
    };
    Container {
        name: "processor".to_owned(),
        image: Some(image.name.clone()),
        image_pull_policy: image.pull_policy.clone(),
        args: Some(vec!["run".to_owned(), "--resource".to_owned(), pipeline.name_any()]),
        env: Some(env(pipeline, validated)),
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: PORT,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        liveness_probe: Some(probe("/livez", 10, 3)),
        readiness_probe: Some(probe("/readyz", 5, 2)),
        startup_probe: Some(probe("/livez", 1, 60)),
        resources: Some(pipeline.spec.processor.resources.clone().unwrap_or_else(|| ResourceRequirements {
            requests: Some(quantities(&[("cpu", "100m"), ("memory", "128Mi")])),
            limits: Some(quantities(&[("memory", "256Mi")])),
            ..ResourceRequirements::default()
        })),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts(validated)),
        ..Container::default()
    }
}

/// The environment of a replica: the settings that it needs before its first request, and those that cannot change while it
/// runs.
fn env(pipeline: &TaskPipeline, validated: &Validated) -> Vec<EnvVar> {
    let spec = &pipeline.spec;
    // Escaped, because the kubelet would replace `$(NAME)` by other variables, such as the token.
    let value = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(value.replace('$', "$$")),
        ..EnvVar::default()
    };
    let own = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let mut env = vec![
        own("POD_NAME", "metadata.name"),
        own("POD_NAMESPACE", "metadata.namespace"),
        value("PORT", PORT.to_string()),
        value("STATE_DIRECTORY", STATE.to_owned()),
        value("NATS_URL", spec.nats.url.clone()),
    ];
    // Replicas read from the status how many share the budget.
    let settings = validated.settings.fixed_variables().into_iter();
    let settings = settings.filter(|(setting, _)| *setting != Setting::CoreReplicas);
    env.extend(settings.map(|(setting, text)| value(setting.variable(), text)));
    for key in ["CF_ACCOUNT_ID", "CF_NAMESPACE_ID", "CF_API_TOKEN", "CF_API_BASE_URL"] {
        if validated.kv.keys.contains(key) {
            env.push(from_secret(key, &validated.kv.name, key));
        }
    }
    if let Some(NatsAuth { secret, login, has_certificate }) = &validated.nats_auth {
        match login {
            Login::UserAndPassword => {
                env.push(from_secret("NATS_USER", &secret.name, "user"));
                env.push(from_secret("NATS_PASSWORD", &secret.name, "password"));
            }
            Login::Token => env.push(from_secret("NATS_TOKEN", &secret.name, "token")),
            Login::Credentials => env.push(value("NATS_CREDS", format!("{NATS_AUTH}/creds"))),
            Login::Nkey => env.push(value("NATS_NKEY", format!("{NATS_AUTH}/nkey"))),
            Login::None => {}
        }
        if secret.keys.contains("inboxPrefix") {
            env.push(from_secret("NATS_INBOX_PREFIX", &secret.name, "inboxPrefix"));
        }
        if secret.keys.contains("tlsFirst") {
            env.push(from_secret("NATS_TLS_FIRST", &secret.name, "tlsFirst"));
        }
        if *has_certificate {
            env.push(value("NATS_CERT", format!("{NATS_AUTH}/tls.crt")));
            env.push(value("NATS_KEY", format!("{NATS_AUTH}/tls.key")));
        }
    }
    if validated.nats_ca.is_some() {
        env.push(value("NATS_CA", format!("{NATS_CA}/{CA}")));
    }
    let is_new = |name: &str| env.iter().all(|known: &EnvVar| known.name != name);
    let more = spec.processor.env.iter().filter(|(name, _)| is_new(name));
    let more: Vec<_> = more.map(|(name, text)| value(name, text.clone())).collect();
    env.extend(more);
    env
}

fn from_secret(name: &str, secret: &str, key: &str) -> EnvVar {
    let selector = SecretKeySelector { name: secret.to_owned(), key: key.to_owned(), optional: None };
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource { secret_key_ref: Some(selector), ..EnvVarSource::default() }),
        ..EnvVar::default()
    }
}

/// The keys of the login Secret that replicas need as files.
fn files(validated: &Validated) -> Option<(&SecretFacts, Vec<&'static str>)> {
    let auth = validated.nats_auth.as_ref()?;
    let mut keys = Vec::new();
    if auth.login == Login::Credentials {
        keys.push("creds");
    }
    if auth.login == Login::Nkey {
        keys.push("nkey");
    }
    if auth.has_certificate {
        keys.extend(["tls.crt", "tls.key"]);
    }
    (!keys.is_empty()).then_some((&auth.secret, keys))
}

fn volumes(validated: &Validated) -> Vec<Volume> {
    let state = Volume {
        name: "state".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity("1Mi".to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    };
    let auth = files(validated).map(|(secret, keys)| from_keys("nats-auth", &secret.name, &keys));
    let ca = validated.nats_ca.as_ref().map(|NatsCa { secret }| from_keys("nats-ca", secret, &[CA]));
    std::iter::once(state).chain(auth).chain(ca).collect()
}

/// A volume with only these keys of a Secret.
fn from_keys(name: &str, secret: &str, keys: &[&str]) -> Volume {
    let item = |key: &&str| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), mode: None };
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(0o440),
            items: Some(keys.iter().map(item).collect()),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn mounts(validated: &Validated) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        // The API server omits a `false` here, so the operator would see drift indefinitely.
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let auth = files(validated).map(|_| mount("nats-auth", NATS_AUTH, true));
    let ca = validated.nats_ca.as_ref().map(|_| mount("nats-ca", NATS_CA, true));
    std::iter::once(mount("state", STATE, false)).chain(auth).chain(ca).collect()
}

fn none_if_empty<T>(all: Vec<T>) -> Option<Vec<T>> {
    (!all.is_empty()).then_some(all)
}
