//! A namespace for one test, under "restricted" pod security. It is deleted when the test ends.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace as Resource;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Config, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::eventually;

/// The label of the namespaces of tests.
const LABEL: &str = "taskpipeline.dev/e2e";

/// A namespace for one test. It is deleted when the test ends.
pub struct Namespace {
    /// A client with the permissions of the user who runs the tests.
    pub client: Client,
    /// The name of the namespace.
    pub name: String,
}

impl Namespace {
    /// Creates a namespace whose name begins with this prefix.
    ///
    /// # Errors
    /// If no cluster is reachable.
    pub async fn new(prefix: &str) -> anyhow::Result<Self> {
        let client = Self::client().await?;
        let labels = [("pod-security.kubernetes.io/enforce", "restricted"), (LABEL, "true")];
        let labels: BTreeMap<_, _> =
            labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        let namespace = Resource {
            metadata: ObjectMeta {
                generate_name: Some(format!("{prefix}-")),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            ..Resource::default()
        };
        let made = Api::<Resource>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(Self { client, name: made.name_any() })
    }

    /// Returns a client with the permissions of the user who runs the tests.
    pub(crate) async fn client() -> anyhow::Result<Client> {
        // Two crypto providers are compiled in, and rustls would not choose.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::try_default().await.context("cannot reach a cluster; run `cargo xtask e2e`")
    }

    /// Waits until the namespaces of other tests are gone, so that nothing happens outside this one.
    ///
    /// # Errors
    /// Names the namespaces that still exist after some time.
    pub async fn is_alone(&self) -> anyhow::Result<()> {
        let namespaces: Api<Resource> = Api::all(self.client.clone());
        eventually(Duration::from_secs(120), async || {
            let all = namespaces.list(&ListParams::default().labels(LABEL)).await?;
            let others: Vec<_> =
                all.iter().map(ResourceExt::name_any).filter(|name| *name != self.name).collect();
            ensure!(others.is_empty(), "namespaces of other tests still exist: {}", others.join(", "));
            Ok(())
        })
        .await
    }

    /// Returns a client as a user who has only these permissions in the namespace.
    ///
    /// # Errors
    /// If the API server refuses the permissions.
    pub async fn user(&self, name: &str, rules: Value) -> anyhow::Result<Client> {
        let metadata = json!({"name": name});
        self.apply::<Role>(json!({"metadata": metadata, "rules": rules})).await?;
        self.apply::<RoleBinding>(json!({
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}],
        }))
        .await?;
        let mut config = Config::infer().await?;
        config.auth_info.impersonate = Some(name.to_owned());
        Ok(Client::try_from(config)?)
    }

    /// Returns the API for the objects of a kind in the namespace.
    #[must_use]
    pub fn api<T>(&self) -> Api<T>
    where
        T: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Applies an object in the form of a manifest.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn apply<T>(&self, manifest: Value) -> anyhow::Result<T>
    where
        T: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        let name = manifest["metadata"]["name"].as_str().context("the manifest has no name")?.to_owned();
        let mut manifest = manifest;
        manifest["apiVersion"] = T::api_version(&()).into();
        manifest["kind"] = T::kind(&()).into();
        let params = PatchParams::apply("e2e").force();
        let applied = self.api::<T>().patch(&name, &params, &Patch::Apply(&manifest)).await;
        applied.with_context(|| format!("cannot apply the {} {name}", T::kind(&())))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let name = self.name.clone();
        // The test's runtime ends with the test, so this thread has its own. It waits only for the request.
        let deleting = std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            runtime.block_on(async {
                let Ok(client) = Client::try_default().await else { return };
                let namespaces: Api<Resource> = Api::all(client);
                let _ = namespaces.delete(&name, &DeleteParams::background()).await;
            });
        });
        let _ = deleting.join();
    }
}
