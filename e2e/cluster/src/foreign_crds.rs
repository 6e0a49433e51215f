//! The CRDs of other projects, for the time of a test. A cluster that has them already keeps its own, and the test uses those.

use std::path::Path;

use anyhow::Context;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt};

use crate::images::told;
use crate::operator::crd_is_served;

/// The label of CRDs that a test has installed.
const LABEL: &str = "taskpipeline.dev/e2e";

/// CRDs of other projects, installed for the time of a test.
pub struct ForeignCrds {
    crds: Api<CustomResourceDefinition>,
    brought: Vec<String>,
}

impl ForeignCrds {
    /// Installs the missing CRDs, and waits until all are served.
    ///
    /// # Errors
    /// If `cargo xtask e2e` did not set their folder, or the API server refuses them.
    pub async fn bring(client: &Client) -> anyhow::Result<Self> {
        let folder = told("TASKPIPELINE_FOREIGN_CRDS")?;
        let mut these = Self { crds: Api::all(client.clone()), brought: Vec::new() };
        for file in std::fs::read_dir(&folder).context("cannot read the folder of the CRDs")? {
            these.bring_one(&file?.path()).await?;
        }
        Ok(these)
    }

    async fn bring_one(&mut self, file: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(file)?;
        let mut crd: CustomResourceDefinition = serde_saphyr::from_str(&text)?;
        let name = crd.name_any();
        let there = self.crds.get_opt(&name).await?;
        // A CRD that an earlier run left behind is ours, too.
        if there.is_none_or(|there| there.labels().contains_key(LABEL)) {
            crd.labels_mut().insert(LABEL.to_owned(), "true".to_owned());
            let params = PatchParams::apply("e2e").force();
            self.crds.patch(&name, &params, &Patch::Apply(&crd)).await?;
            self.brought.push(name.clone());
        }
        crd_is_served(&self.crds, &name).await
    }

    /// Removes the CRDs that were installed.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn take_away(self) -> anyhow::Result<()> {
        for name in &self.brought {
            self.crds.delete(name, &DeleteParams::background()).await?;
        }
        Ok(())
    }
}
