//! The stream of events: its creation and checks, its incarnation, and the session that reads it.

pub(crate) mod agreement;
pub(crate) mod error;
pub(crate) mod fitness;
pub(crate) mod gaps;
pub(crate) mod incarnation;
pub(crate) mod kind;
pub(crate) mod limit;
pub(crate) mod room;
pub(crate) mod session;
pub(crate) mod streams;
pub(crate) mod subscription;
