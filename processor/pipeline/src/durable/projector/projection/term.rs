//! The part of the projection that renews the control record and lends from the budget. It releases
//! the record after a stall or a drain.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, warn};

use super::{Action, Projection, RENEW_AGAIN, Term};
use crate::durable::control::holder::{Lease, Renewal};
use crate::durable::control::record::{MAY_SEND, RENEWAL, Settled};
use crate::durable::projector::jobs::Job;
use crate::durable::projector::progress::{Course, Signs, Stall};
use crate::durable::projector::shares::Share;
use crate::durable::projector::unsettled::Unsettled;

/// The interval between two checks whether the projector makes progress.
const LOOK: Duration = Duration::from_secs(1);

/// The state of its surroundings that a projection cannot observe itself.
pub(crate) struct Outside {
    /// Why the changes of the ledger cannot be read, or `None` if they can.
    pub(crate) broken: Option<String>,
    /// Whether NATS is connected.
    pub(crate) connected: bool,
}

/// The contents of the released control record.
pub(crate) struct Leaving {
    pub(crate) held: Lease,
    pub(crate) settled: Settled,
    /// Whether no request can take effect any more.
    pub(crate) clean: bool,
    /// The rest of the budget, in requests.
    pub(crate) spare: u32,
}

impl Projection {
    /// Checks whether the projector makes progress, and reports a stall. Returns whether another
    /// replica should try.
    pub(crate) fn has_given_up(&mut self, outside: &Outside, now: Instant) -> bool {
        if now < self.look_at {
            return false;
        }
        self.look_at = now + LOOK;
        let signs = Signs {
            position: (self.read, self.unsettled.settled(), self.answered),
            may_work: outside.connected && self.may_send(now),
            unread: outside.broken.is_some(),
            waits: self.schedule.has_ready() || !self.unsettled.has_room_for(Share::Write),
            excused: self.schedule.is_excused(now),
        };
        let (stall, gives_up) = match self.progress.see(&signs, now) {
            Course::Well => {
                self.setup.health.set_stalled(None);
                return false;
            }
            Course::Stalled(stall) => (stall, false),
            Course::GivesUp(stall) => (stall, true),
        };
        let why = match (stall, &outside.broken) {
            (Stall::Unread, Some(broken)) => format!(
                "cannot read the changes of the ledger: {broken}. Check the limits and permissions of the NATS account"
            ),
            _ => {
                "changes wait and none is written. This is a bug in taskpipeline; please report it".to_owned()
            }
        };
        if self.setup.health.stalled().as_deref() != Some(&*why) {
            error!(reason = why, "the projector is stalled");
        }
        if gives_up {
            self.setup.metrics.projector_stalls.inc();
            error!("stopped being the writer, so that another replica tries");
        }
        self.setup.health.set_stalled(Some(why));
        gives_up
    }

    /// Returns whether no other replica can project now, unless a process was stopped.
    pub(super) fn may_send(&self, now: Instant) -> bool {
        now.duration_since(self.held.since) < MAY_SEND
    }

    pub(super) fn renew(&mut self, now: Instant) {
        if self.renewing || now < self.renew_at {
            return;
        }
        self.renewing = true;
        let settled = self.unsettled.known_settled(now);
        self.begin(Job::Renew { held: self.held.clone(), settled, read: self.read });
    }

    pub(super) fn renewed(&mut self, renewal: Renewal, now: Instant) -> Term {
        match renewal {
            Renewal::Renewed(held) => {
                self.renew_at = held.since + RENEWAL;
                self.held = held;
                self.take_in_what_may_be(now);
            }
            Renewal::Restarted(held) => {
                warn!(from_revision = held.control.settled.0, "a former writer handed over");
                let settled = held.control.settled;
                let setup = &self.setup;
                self.unsettled = Unsettled::new(&setup.limits, settled, held.doubt, setup.settle_after, now);
                self.following = false;
                self.left.clear();
                self.ahead.clear();
                self.read = settled;
                self.schedule.restart();
                self.actions.clear();
                self.actions.push_back(Action::Restart(settled));
                self.to_expire.clear();
                (self.expiring, self.reading, self.reading_deferred) = (false, 0, false);
                self.renew_at = held.since + RENEWAL;
                self.held = held;
            }
            Renewal::Lost => return Term::Lost,
            Renewal::Unknown(what) => {
                warn!(error = %what, "cannot renew the control record");
                self.renew_at = now + RENEW_AGAIN;
            }
        }
        Term::GoesOn
    }

    /// Grants the open request of a command, before the next request of the projector.
    pub(super) fn lend(&mut self, now: Instant) {
        let Some(asked) = self.asked.take() else { return };
        match self.schedule.lend(asked.loan.wanted, now) {
            0 => self.asked = Some(asked),
            requests => self.begin(Job::Lend { asked, requests }),
        }
    }

    /// The contents of the control record for a release now.
    pub(crate) fn leaving(&mut self, now: Instant) -> Leaving {
        Leaving {
            held: self.held.clone(),
            settled: self.unsettled.known_settled(now),
            clean: self.schedule.in_flight() == 0 && self.unsettled.is_clean(now),
            spare: self.schedule.spare(now),
        }
    }

    /// The control record as last held.
    pub(crate) fn held(&self) -> &Lease {
        &self.held
    }

    /// The tasks that KV may lack.
    #[cfg(test)]
    pub(crate) fn unsettled(&self) -> &Unsettled {
        &self.unsettled
    }
}
