//! Leader election: of several operators, only the holder of a Lease works. Fail-stop: an operator that cannot confirm that it
//! holds the Lease exits, and restarts as a standby.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::Api;
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// How long a Lease is valid after its renewal, in seconds. If its holder dies, no operator works for this time.
const DURATION: u64 = 6;

/// How long before its end the Lease is renewed, in seconds.
const RENEWED_BEFORE: u64 = 4;

/// The interval between two checks of the Lease.
const LOOK: Duration = Duration::from_secs(1);

/// The Lease, and an operator that wants to hold it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) namespace: String,
    pub(crate) lease: String,
    pub(crate) identity: String,
}

/// The held Lease. Dropping this releases the Lease.
pub(crate) struct Leadership {
    _held: watch::Receiver<bool>,
    candidate: Candidate,
    client: Client,
}

/// Waits until this operator holds the Lease.
///
/// # Errors
/// If Leases cannot be used.
pub(crate) async fn lead(client: Client, candidate: Candidate) -> Result<Leadership, LeaseManagerError> {
    let manager = LeaseManagerBuilder::new(client.clone(), &candidate.lease)
        .with_namespace(&candidate.namespace)
        .with_identity(&candidate.identity)
        .with_duration(DURATION)
        .with_grace(RENEWED_BEFORE)
        .build()
        .await?;
    let (mut held, _) = manager.watch().await;
    info!(namespace = candidate.namespace, lease = candidate.lease, "waiting for the Lease");
    // The watch ends only with the task of the manager.
    let _ = held.wait_for(|held| *held).await;
    info!("became leader");
    Ok(Leadership { _held: held, candidate, client })
}

impl Leadership {
    /// Resolves when the operator can no longer confirm that it holds the Lease.
    pub(crate) async fn lost(&self) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.candidate.namespace);
        let valid = Duration::from_secs(DURATION);
        let mut renewed = Instant::now();
        let mut seen = None;
        while renewed.elapsed() < valid {
            tokio::time::sleep(LOOK).await;
            match tokio::time::timeout(LOOK, leases.get(&self.candidate.lease)).await {
                Ok(Ok(lease)) => {
                    let spec = lease.spec.unwrap_or_default();
                    if spec.holder_identity.as_deref() != Some(&self.candidate.identity) {
                        warn!(
                            holder = spec.holder_identity.unwrap_or_default(),
                            "another operator holds the Lease"
                        );
                        return;
                    }
                    // By the local clock: a new renewal happened after the last check. Not by the resource version, which also
                    // changes with the owner.
                    if spec.renew_time != seen {
                        (renewed, seen) = (Instant::now(), spec.renew_time);
                    }
                }
                Ok(Err(error)) => warn!(%error, "cannot read the Lease"),
                Err(_) => warn!(error = "no answer", "cannot read the Lease"),
            }
        }
        warn!(seconds = DURATION, "lost the Lease: it was not renewed in time");
    }
}
