//! Which of several operators works: the holder of a Lease. Fail-stop: one that cannot see that it still holds it ends, and
//! is started anew as one that waits.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::Api;
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// How long a Lease is valid after its renewal, in seconds: so long nobody works where its holder dies.
const DURATION: u64 = 6;

/// How long before that it is renewed, in seconds.
const RENEWED_BEFORE: u64 = 4;

/// How often the holder looks whether it still is.
const LOOK: Duration = Duration::from_secs(1);

/// The Lease, and who wants it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) namespace: String,
    pub(crate) lease: String,
    pub(crate) identity: String,
}

/// What holding the Lease needs. It is let go of when this is dropped.
pub(crate) struct Leadership {
    _held: watch::Receiver<bool>,
    candidate: Candidate,
    client: Client,
}

/// Waits until the Lease is held.
///
/// # Errors
/// Where Leases cannot be used at all.
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
    // It ends only with the manager's task.
    let _ = held.wait_for(|held| *held).await;
    info!("became leader");
    Ok(Leadership { _held: held, candidate, client })
}

impl Leadership {
    /// Resolves when it cannot be seen any more that the Lease is held.
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
                    // By our own clock: a renewal that is seen has happened since the last look. Not by the Lease's version,
                    // which changes with its owner as well.
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
