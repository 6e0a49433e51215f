//! Shared parts of the tests on a cluster: a namespace for each test, with NATS, the simulator and the operator as
//! pods, and ways to inspect them.

mod dry_run;
mod foreign_crds;
mod forward;
mod helm;
mod images;
mod namespace;
mod nats;
mod operator;
mod pipeline;
mod pods;
mod producer;
mod release;
mod simulator;
mod volume;

pub use dry_run::{DryRun, objects};
pub use foreign_crds::ForeignCrds;
pub use forward::Forward;
pub use helm::{Chart, Helm};
pub use images::Image;
pub use namespace::Namespace;
pub use nats::NatsPod;
pub use operator::{OperatorPods, crd_is_installed, crd_is_removed};
pub use pipeline::{condition, kv_secret, minimal};
pub use pods::{Ended, PROCESSORS, exec, once, present, ready};
pub use producer::{LOAD_PORT, Producer, create};
pub use release::{Release, forward, log_in, login_of};
pub use simulator::SimulatorPod;
pub use taskpipeline_testkit::{Sample, eventually, samples, sum, within};
pub use volume::{copy_volume, delete_volume};
