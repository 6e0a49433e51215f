//! The part of the projector that holds the control record: renews it, lends of the budget, gives it up where nothing moves,
//! and releases it.

use std::time::Duration;

use async_nats::connection::State as NatsState;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, warn};

use super::{Done, Feed, Projector, RENEW_AGAIN, feed};
use crate::kv::BulkApi;
use crate::pipeline::durable::control::{MAY_SEND, RENEWAL};
use crate::pipeline::durable::holder::Renewal;
use crate::pipeline::durable::progress::{Course, Signs, Stall};
use crate::pipeline::durable::shares::Share;
use crate::pipeline::durable::unsettled::Unsettled;

/// How often it is looked whether the projector moves.
const LOOK: Duration = Duration::from_secs(1);

impl<K: BulkApi> Projector<K> {
    /// Looks whether it moves, and says so if it does not. Answers whether another should try.
    pub(super) fn has_given_up(&mut self) -> bool {
        let now = Instant::now();
        if now < self.look_at {
            return false;
        }
        self.look_at = now + LOOK;
        let broken = self.feed.broken().or_else(|| self.second.as_ref().and_then(Feed::broken));
        let connection = self.parts.jetstream.client().connection_state();
        let signs = Signs {
            position: (self.read, self.unsettled.settled(), self.answered),
            may_work: connection == NatsState::Connected && self.may_send(),
            unread: broken.is_some(),
            waits: self.dispatch.has_ready() || !self.unsettled.has_room_for(Share::Write),
            excused: self.dispatch.is_excused(now),
        };
        let (stall, gives_up) = match self.progress.see(&signs, now) {
            Course::Well => {
                self.parts.health.set_stalled(None);
                return false;
            }
            Course::Stalled(stall) => (stall, false),
            Course::GivesUp(stall) => (stall, true),
        };
        let why = match (stall, broken) {
            (Stall::Unread, Some(broken)) => format!(
                "the ledger's changes cannot be read: {broken}. Check the limits and permissions of the NATS account"
            ),
            _ => "changes wait and none is written, for no known reason. Please report this as a bug"
                .to_owned(),
        };
        if self.parts.health.stalled().as_deref() != Some(&*why) {
            error!(reason = why, "the projector does not move");
        }
        if gives_up {
            self.parts.metrics.projector_stalls.inc();
            error!("gave up writing to KV, for another replica to try");
        }
        self.parts.health.set_stalled(Some(why));
        gives_up
    }

    /// Whether this replica can be sure enough that no other projects.
    pub(super) fn may_send(&self) -> bool {
        self.held.since.elapsed() < MAY_SEND
    }

    pub(super) fn renew(&mut self) {
        if self.renewing || Instant::now() < self.renew_at {
            return;
        }
        self.renewing = true;
        let (holder, held, settled, read) = (
            self.parts.holder.clone(),
            self.held.clone(),
            self.unsettled.known_settled(Instant::now()),
            self.read,
        );
        self.beside.spawn(async move {
            let renewal = holder.renew(held, settled, read).await;
            Done::Renewed(renewal, holder.asked().await)
        });
    }

    /// Answers whether the record is lost.
    pub(super) fn renewed(&mut self, renewal: Renewal) -> bool {
        match renewal {
            Renewal::Held(held) => {
                self.renew_at = held.since + RENEWAL;
                self.held = held;
                self.take_in_what_may_be();
            }
            Renewal::Restarted(held) => {
                warn!("a former holder has handed over what came after change {}", held.control.settled.0);
                let (settled, now) = (held.control.settled, Instant::now());
                self.unsettled = Unsettled::new(settled, held.doubt, self.parts.settle_after, now);
                self.feed = feed(&self.parts, settled);
                self.second = None;
                self.left.clear();
                self.ahead.clear();
                self.read = settled;
                self.dispatch.restart();
                self.beside = JoinSet::new();
                self.to_expire.clear();
                (self.expiring, self.reading, self.reading_deferred) = (false, 0, false);
                self.renew_at = held.since + RENEWAL;
                self.held = held;
            }
            Renewal::Lost => return true,
            Renewal::Unknown(what) => {
                warn!("that this replica writes to KV cannot be recorded: {what}");
                self.renew_at = Instant::now() + RENEW_AGAIN;
            }
        }
        false
    }

    /// What a command has asked for comes before the next request.
    pub(super) fn lend(&mut self) {
        let Some(asked) = self.asked.take() else { return };
        match self.dispatch.lend(asked.loan.wanted) {
            0 => self.asked = Some(asked),
            requests => {
                let holder = self.parts.holder.clone();
                self.beside.spawn(async move {
                    holder.grant(asked, requests).await;
                    Done::Lent
                });
            }
        }
    }

    pub(super) async fn release(&mut self) {
        let clean = self.dispatch.in_flight() == 0 && self.unsettled.is_clean(Instant::now());
        let spare = self.dispatch.spare();
        let settled = self.unsettled.known_settled(Instant::now());
        self.parts.holder.release(self.held.clone(), settled, clean, spare).await;
    }
}
