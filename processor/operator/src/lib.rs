//! TaskPipelines in Kubernetes: the resource, its CRD, the controller that carries it out, and how a replica follows its own.

pub mod api;
pub mod controller;
pub mod crd;
pub mod replica;
