//! The faults of the nats-servers of a history and of their streams, as data, and their number in one history.
//! `nats_lane` carries them out. Pure.

use std::time::Duration;

use super::dice::Dice;
use super::events::{Mixture, Publication};
use super::moment::{Servers, Strike};

/// A fault of nats-server, or of a stream. One happens at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NatsFault {
    /// kill -9, and a start with the same files.
    Kill {
        /// The time between the two.
        down: Duration,
    },
    /// SIGSTOP and SIGCONT.
    Stop {
        /// The time between the two.
        lasting: Duration,
    },
    /// kill -9 of one server of three, and a start with the same files.
    NodeKilled {
        /// The server.
        node: Node,
        /// The time between the two.
        down: Duration,
    },
    /// SIGSTOP and SIGCONT of one server of three.
    NodeStopped {
        /// The server.
        node: Node,
        /// The time between the two.
        lasting: Duration,
    },
    /// The stream is deleted and created again.
    Recreated {
        /// Whether the harness creates it again at once; otherwise the replicas must.
        by_harness: bool,
    },
    /// The stream's files are replaced by an older copy.
    TailLost {
        /// Whether events from before the tail are delivered again after it.
        redelivery: bool,
        /// Events that are published before the copy, while one replica is stopped with some of them. They are
        /// delivered again to another replica after the loss. Empty if no replica is stopped.
        before: Vec<Publication>,
        /// Events that are published after the copy: the tail.
        tail: Vec<Publication>,
        /// Events that are published first after the loss: other events of the tail's tasks.
        after: Vec<Publication>,
        /// Whether a replica dies while the server is away.
        kill_replica: bool,
    },
    /// The ledger's bucket accepts only a little more, and is enlarged later.
    LedgerRefuses {
        /// The limit that the bucket reaches.
        limit: LedgerLimit,
        /// The time between the two.
        lasting: Duration,
    },
    /// The stream accepts only a little more, and is enlarged later.
    StoreFull {
        /// The bytes that it still accepts.
        room: u64,
        /// The time between the two.
        lasting: Duration,
    },
}

/// One server of three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// The server that leads the stream of the events.
    LeadsEvents,
    /// The server that leads the ledger.
    LeadsLedger,
    /// The server with this number.
    Number(usize),
}

/// The limit of the ledger's bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LedgerLimit {
    /// This many more records (`max_msgs`).
    Records(i64),
    /// This many more bytes (`max_bytes`).
    Bytes(i64),
    /// Records of at most this many bytes (`max_msg_size`).
    Size(i32),
}

impl LedgerLimit {
    /// The error of nats-server when it refuses a write for this reason.
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
    /// The name in the counters.
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

    /// Whether the fault counts only if a replica or the producer met it, which is known at the end.
    #[must_use]
    pub(crate) fn is_counted_at_the_end(&self) -> bool {
        matches!(self, Self::LedgerRefuses { .. } | Self::StoreFull { .. })
    }
}

/// The number of kinds of faults of one server.
#[cfg(test)]
pub(crate) const KINDS: usize = 13;

/// Draws the faults of the servers of one history: kills or stops, a shortage of room, and sometimes a recreated or
/// shortened stream.
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
    // The rhythm differs from that of the shortages.
    match (servers, (turn / 4) % 4) {
        // With three servers, the files of one server must not be older than those of the two others. Such a loss
        // does not occur in practice.
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

/// The number of events before a lost tail, so that a stopped replica has some of them.
const BEFORE: usize = 120;

/// The number of events in a lost tail.
const LOST: usize = 100;

/// Returns a temporary shortage of room, whose kind rotates with the turn.
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
            // No other event concerns these tasks. The order is reversed, so that half of the new events have lower
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
