//! The limits for editors of pipelines. By default, a pipeline cannot affect anything beyond its own pods; the administrator of
//! the operator can allow more. Sidecar injectors, Vault and Multus act on annotations and labels with the rights of the
//! namespace. Labels can match Services and network policies. A priority class or many replicas can evict other pods. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::sync::Arc;
use std::time::Duration;

use taskpipeline_pipeline::settings::{PipelineSettings, Setting};

use super::invalid::{Invalid, invalid};
use super::seniority::older;
use crate::api::TaskPipeline;

/// The reason of a pipeline beyond the limit of its namespace.
pub(crate) const TOO_MANY: &str = "TooManyPipelines";

/// The longest drain: a deleted pod may stay for this time.
const MOST_GRACE: Duration = Duration::from_secs(600);

/// The annotations, labels and references that editors of pipelines may use.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Policy {
    /// The allowed prefixes of label and annotation keys of pods, separated by commas; `*` allows any
    #[arg(long, env = "ALLOW_METADATA", value_delimiter = ',')]
    allow_metadata: Vec<String>,
    /// The allowed priority classes of pods, separated by commas; `*` allows any
    #[arg(long, env = "ALLOW_PRIORITY_CLASSES", value_delimiter = ',')]
    allow_priority_classes: Vec<String>,
    /// The most replicas of a pipeline
    #[arg(long, env = "MOST_REPLICAS", default_value_t = Policy::default().most_replicas)]
    most_replicas: i32,
    /// The most pipelines of a namespace that are reconciled, the oldest first
    #[arg(long, env = "MOST_PIPELINES", default_value_t = Policy::default().most_pipelines)]
    most_pipelines: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allow_metadata: Vec::new(),
            allow_priority_classes: Vec::new(),
            most_replicas: 100,
            most_pipelines: 100,
        }
    }
}

impl Policy {
    /// A policy that allows everything.
    #[cfg(test)]
    pub(super) fn open() -> Self {
        let any = || vec!["*".to_owned()];
        Self {
            allow_metadata: any(),
            allow_priority_classes: any(),
            most_replicas: i32::MAX,
            most_pipelines: usize::MAX,
        }
    }

    /// Checks a spec against the limits.
    ///
    /// # Errors
    /// The first field that is not allowed.
    pub(crate) fn allows(&self, pipeline: &TaskPipeline, settings: &PipelineSettings) -> Result<(), Invalid> {
        let spec = &pipeline.spec;
        let processor = &spec.processor;
        let all = [("labels", &processor.labels), ("annotations", &processor.annotations)];
        for (field, key) in all.into_iter().flat_map(|(field, map)| map.keys().map(move |key| (field, key))) {
            if !self
                .allow_metadata
                .iter()
                .any(|allowed| allowed == "*" || !allowed.is_empty() && key.starts_with(allowed))
            {
                return Err(invalid(
                    "MetadataNotAllowed",
                    format!(
                        "spec.processor.{field}: this operator does not allow {key:?}, because other controllers may act on it \
                         with rights of their own. The administrator of the operator can allow it (--allow-metadata, in the \
                         chart operator.allow.metadata)"
                    ),
                ));
            }
        }
        if let Some(class) = &processor.priority_class_name
            && !self.allow_priority_classes.iter().any(|allowed| allowed == "*" || allowed == class)
        {
            return Err(invalid(
                "PriorityClassNotAllowed",
                format!(
                    "spec.processor.priorityClassName: this operator does not allow {class:?}, because it may evict other \
                     pods. The administrator of the operator can allow it (--allow-priority-classes, in the chart \
                     operator.allow.priorityClasses)"
                ),
            ));
        }
        if let Some(replicas) = spec.replicas.filter(|replicas| *replicas > self.most_replicas) {
            return Err(invalid(
                "TooManyReplicas",
                format!(
                    "spec.replicas is {replicas}, but this operator allows at most {}. The administrator of the operator can \
                     allow more (--most-replicas, in the chart operator.allow.replicas)",
                    self.most_replicas
                ),
            ));
        }
        if settings.shutdown_grace > MOST_GRACE {
            let fault = Setting::ShutdownGrace
                .is("must be at most 10m, because a deleted pod may stay for this time");
            return Err(invalid("InvalidSpec", fault.by_path()));
        }
        Ok(())
    }

    /// Checks whether the pipeline is within the limit of its namespace.
    ///
    /// # Errors
    /// If the namespace has too many older pipelines.
    pub(crate) fn admits(&self, pipeline: &TaskPipeline, all: &[Arc<TaskPipeline>]) -> Result<(), Invalid> {
        let most = self.most_pipelines;
        if older(pipeline, all).take(most).count() < most {
            return Ok(());
        }
        Err(invalid(
            TOO_MANY,
            format!(
                "this operator reconciles only the {most} oldest pipelines of a namespace. Delete a pipeline that you do not \
                 need, or ask the administrator of the operator to allow more (--most-pipelines, in the chart \
                 operator.allow.pipelines)"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;

    fn pipeline(change: &Value) -> TaskPipeline {
        let mut spec = json!({"nats": {"url": "nats://n"}, "kv": {"secretRef": {"name": "kv"}}});
        spec.as_object_mut().unwrap().append(&mut change.as_object().unwrap().clone());
        TaskPipeline::new("tasks", serde_json::from_value(spec).unwrap())
    }

    fn reason(policy: &Policy, change: &Value) -> &'static str {
        let pipeline = pipeline(change);
        let settings = PipelineSettings::try_from(&pipeline.spec).unwrap();
        policy.allows(&pipeline, &settings).map_or_else(|forbidden| forbidden.reason, |()| "")
    }

    #[test]
    fn the_oldest_pipelines_of_a_namespace_are_carried_out_and_those_of_others_do_not_count() {
        let made = |namespace: &str, second: i64| {
            let mut made = pipeline(&json!({}));
            made.metadata.namespace = Some(namespace.to_owned());
            made.metadata.uid = Some(format!("{namespace}-{second}"));
            let at = k8s_openapi::jiff::Timestamp::from_second(second).unwrap();
            made.metadata.creation_timestamp = Some(Time(at));
            Arc::new(made)
        };
        let crowd = (0..10_000).map(|second| made("tenant", second));
        let all: Vec<_> = crowd.chain([made("shop", 20_000)]).collect();
        let policy = Policy::default();
        let refused = all.iter().filter_map(|pipeline| policy.admits(pipeline, &all).err());
        let refused: Vec<_> = refused.map(|invalid| invalid.reason).collect();
        assert_eq!(refused, [TOO_MANY; 9_900]);
        assert_eq!(policy.admits(&all[99], &all), Ok(()));
        assert_eq!(policy.admits(&all[10_000], &all), Ok(()));
    }

    #[test]
    fn nothing_that_reaches_beyond_its_pods_is_allowed_unless_it_is_said() {
        let closed = Policy::default();
        let metadata = |kind: &str, key: &str| json!({"processor": {kind: {key: "x"}}});
        for kind in ["labels", "annotations"] {
            for key in [
                "team",
                "vault.hashicorp.com/agent-inject",
                "sidecar.istio.io/inject",
                "k8s.v1.cni.cncf.io/networks",
            ] {
                assert_eq!(reason(&closed, &metadata(kind, key)), "MetadataNotAllowed", "{key}");
            }
        }
        let class = json!({"processor": {"priorityClassName": "system-cluster-critical"}});
        assert_eq!(reason(&closed, &class.clone()), "PriorityClassNotAllowed");
        assert_eq!(reason(&closed, &json!({"replicas": 101})), "TooManyReplicas");
        assert_eq!(reason(&closed, &json!({"replicas": 100})), "");
        assert_eq!(reason(&closed, &json!({"processor": {"env": {"SHUTDOWN_GRACE": "11m"}}})), "InvalidSpec");
        assert_eq!(reason(&closed, &json!({"processor": {"env": {"SHUTDOWN_GRACE": "10m"}}})), "");

        let open = Policy {
            allow_metadata: vec![String::new(), "example.org/".to_owned(), "team".to_owned()],
            allow_priority_classes: vec!["system-cluster-critical".to_owned()],
            most_replicas: 1,
            most_pipelines: 1,
        };
        assert_eq!(reason(&open, &metadata("labels", "example.org/owner")), "");
        assert_eq!(reason(&open, &metadata("annotations", "team")), "");
        assert_eq!(
            reason(&open, &metadata("annotations", "vault.hashicorp.com/agent-inject")),
            "MetadataNotAllowed"
        );
        assert_eq!(reason(&open, &class), "");
        assert_eq!(reason(&open, &json!({"replicas": 2})), "TooManyReplicas");
        let any = Policy { allow_metadata: vec!["*".to_owned()], ..Policy::default() };
        assert_eq!(reason(&any, &metadata("labels", "team")), "");
    }
}
