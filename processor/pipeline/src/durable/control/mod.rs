//! Decides which replica projects: the control record, its holder, and loans of the request budget.

pub(crate) mod holder;
pub(crate) mod loan;
pub(crate) mod record;
pub(crate) mod register;
