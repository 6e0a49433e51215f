//! Which replica projects: the control record, how it is held, and what is lent of the request budget.

pub(crate) mod holder;
pub(crate) mod loan;
pub(crate) mod record;
pub(crate) mod register;
