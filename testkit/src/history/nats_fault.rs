//! What can happen to the nats-servers of a history and to their streams, as data; and how many of which one
//! history has. `nats_lane` carries them out. Pure.

use std::time::Duration;

use super::dice::Dice;
use super::events::{Mixture, Publication};
use super::moment::{Servers, Strike};

/// A fault of nats-server, or of a stream. One at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NatsFault {
    /// kill -9, and a start on the same files.
    Kill {
        /// Between the two.
        down: Duration,
    },
    /// SIGSTOP and SIGCONT.
    Stop {
        /// Between the two.
        lasting: Duration,
    },
    /// kill -9 of one server of three, and a start on the same files.
    NodeKilled {
        /// Which one.
        node: Node,
        /// Between the two.
        down: Duration,
    },
    /// SIGSTOP and SIGCONT of one server of three.
    NodeStopped {
        /// Which one.
        node: Node,
        /// Between the two.
        lasting: Duration,
    },
    /// The stream is deleted and created again.
    Recreated {
        /// By the harness at once; otherwise the replicas must.
        by_harness: bool,
    },
    /// The stream's files are replaced by an older copy.
    TailLost {
        /// Whether events from before the tail are delivered again after it.
        redelivery: bool,
        /// Published before the copy, while one replica stands still with some of it: that is delivered again to
        /// another after the tail. Empty where no replica stands still.
        before: Vec<Publication>,
        /// Published after the copy was made: the tail.
        tail: Vec<Publication>,
        /// Published first of all after the loss: other events of the tail's tasks.
        after: Vec<Publication>,
        /// Whether a replica dies while the server is away.
        kill_replica: bool,
    },
    /// The ledger's bucket takes no more than a little, and is enlarged again.
    LedgerRefuses {
        /// What it is short of.
        limit: LedgerLimit,
        /// Between the two.
        lasting: Duration,
    },
    /// The stream takes no more than a little, and is enlarged again.
    StoreFull {
        /// The bytes it still takes.
        room: u64,
        /// Between the two.
        lasting: Duration,
    },
}

/// One server of three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// The one that leads the stream of the events.
    LeadsEvents,
    /// The one that leads the ledger.
    LeadsLedger,
    /// By its number.
    Number(usize),
}

/// What the ledger's bucket is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LedgerLimit {
    /// So many more records (`max_msgs`).
    Records(i64),
    /// So many more bytes (`max_bytes`).
    Bytes(i64),
    /// Records of at most so many bytes (`max_msg_size`).
    Size(i32),
}

impl LedgerLimit {
    /// What nats-server says of a write that it refuses for this reason.
    #[must_use]
    pub(crate) fn refusal(self) -> &'static str {
        match self {
            Self::Records(_) => "maximum messages exceeded",
            Self::Bytes(_) => "maximum bytes exceeded",
            Self::Size(_) => "message size exceeds maximum allowed",
        }
    }
}

impl NatsFault {
    /// What it is counted as.
    #[must_use]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill nats-server",
            Self::Stop { .. } => "stop nats-server",
            Self::NodeKilled { node: Node::Number(_), .. } => "kill one of three nats-servers",
            Self::NodeKilled { .. } => "kill the leader of a stream",
            Self::NodeStopped { node: Node::Number(_), .. } => "stop one of three nats-servers",
            Self::NodeStopped { .. } => "stop the leader of a stream",
            Self::Recreated { .. } => "stream recreated",
            Self::TailLost { redelivery: true, .. } => "stream's tail lost after a redelivery",
            Self::TailLost { .. } => "stream's tail lost",
            Self::LedgerRefuses { limit: LedgerLimit::Records(_), .. } => "ledger full by max_msgs",
            Self::LedgerRefuses { limit: LedgerLimit::Bytes(_), .. } => "ledger full by max_bytes",
            Self::LedgerRefuses { limit: LedgerLimit::Size(_), .. } => "ledger with max_msg_size",
            Self::StoreFull { .. } => "stream full and enlarged",
        }
    }

    /// Whether it counts only where a replica or the producer met it, which is known at the end.
    #[must_use]
    pub(crate) fn is_counted_at_the_end(&self) -> bool {
        matches!(self, Self::LedgerRefuses { .. } | Self::StoreFull { .. })
    }
}

/// The names of all faults of one server.
#[cfg(test)]
pub(crate) const KINDS: usize = 13;

/// What happens to the servers of one history: kills or stops, a shortage of room, and now and then a stream that is
/// not what it was.
pub(crate) fn draw(
    turn: u64,
    servers: Servers,
    dice: &mut Dice,
    lasting: Duration,
) -> Vec<Strike<NatsFault>> {
    let millis = |dice: &mut Dice, least, most| Duration::from_millis(dice.between(least, most));
    let mut faults = Vec::new();
    match servers {
        Servers::One if dice.chance(500) => faults.push(NatsFault::Kill { down: millis(dice, 0, 2_000) }),
        Servers::One => faults.push(NatsFault::Stop { lasting: millis(dice, 500, 3_000) }),
        Servers::Three => {
            for leads in [true, false] {
                let node = match (leads, dice.index(4)) {
                    (true, 0 | 1) => Node::LeadsEvents,
                    (true, _) => Node::LeadsLedger,
                    (false, n) => Node::Number(n % 3),
                };
                faults.push(if dice.chance(500) {
                    NatsFault::NodeKilled { node, down: millis(dice, 0, 4_000) }
                } else {
                    NatsFault::NodeStopped { node, lasting: millis(dice, 500, 6_000) }
                });
            }
        }
    }
    faults.push(shortage(turn, dice));
    // Not in step with what room is missing.
    match (servers, (turn / 4) % 4) {
        // No file of one server may be older than what the two others hold: nobody has such a loss.
        (Servers::Three, n) if n > 0 => {}
        (_, 0) => faults.push(NatsFault::Recreated { by_harness: dice.chance(500) }),
        (_, 3) if dice.chance(500) => {}
        (_, n) => faults.push(NatsFault::TailLost {
            redelivery: n == 1,
            before: Vec::new(),
            tail: Vec::new(),
            after: Vec::new(),
            kill_replica: n != 1 && dice.chance(400),
        }),
    }
    dice.shuffle(&mut faults);
    let most = u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX).saturating_sub(1_000).max(300);
    let mut moments: Vec<_> = faults.iter().map(|_| millis(dice, 300, most)).collect();
    moments.sort_unstable();
    moments.into_iter().zip(faults).map(|(at, fault)| Strike { at, fault }).collect()
}

/// How many events are published before a tail that is lost, so that a replica that stands still has some.
const BEFORE: usize = 120;

/// How many events such a tail has.
const LOST: usize = 100;

/// Room that is missing for a while; which, goes round with the turn.
fn shortage(turn: u64, dice: &mut Dice) -> NatsFault {
    let lasting = Duration::from_millis(dice.between(2_000, 5_000));
    let limit = match turn % 4 {
        0 => LedgerLimit::Records(i64::try_from(dice.between(0, 30)).unwrap_or(0)),
        1 => LedgerLimit::Bytes(i64::try_from(dice.between(0, 10_000)).unwrap_or(0)),
        2 => LedgerLimit::Size(i32::try_from(dice.between(250, 600)).unwrap_or(250)),
        _ => return NatsFault::StoreFull { room: dice.between(0, 20_000), lasting },
    };
    NatsFault::LedgerRefuses { limit, lasting }
}

/// Draws the events that belong to faults.
pub(crate) fn fill(faults: &mut [Strike<NatsFault>], dice: &mut Dice, mixture: &mut Mixture) {
    for strike in faults {
        let NatsFault::TailLost { redelivery, before, tail, after, .. } = &mut strike.fault else { continue };
        if *redelivery {
            before.extend((0..BEFORE).map(|_| mixture.draw()));
            // No other event concerns these tasks. In the opposite order, so that half of the new events have lower
            // sequences than the lost ones of the same tasks.
            let ids: Vec<_> = (0..LOST).map(|n| format!("lost-{n}")).collect();
            tail.extend(ids.iter().map(|id| mixture.create(id)));
            after.extend(ids.iter().rev().map(|id| mixture.create(id)));
        } else {
            let most = if dice.chance(500) { 3 } else { 150 };
            tail.extend((0..dice.between(1, most)).map(|_| mixture.draw()));
        }
    }
}
