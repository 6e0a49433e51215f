//! TaskPipelines in Kubernetes: the resource, its CRD, the controller that reconciles it, and how a replica follows its own
//! resource.

pub mod api;
pub mod controller;
pub mod crd;
pub mod replica;
