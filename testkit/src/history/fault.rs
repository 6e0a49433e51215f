//! The faults of a history as data, with their parameters. `strike` carries them out.

use std::time::Duration;

use taskpipeline_simulator::{Fault, KeyMatch, Report, Rule, Scope};

use super::dice::Dice;
use super::events::{POISON, SEEDED};

/// How long a replica may be stopped before another replaces it: the processor's lease.
pub(crate) const LEASE: Duration = Duration::from_secs(4);

/// The usual settle time of the replicas.
pub(crate) const SETTLE_AFTER: Duration = Duration::from_secs(3);

/// A settle time beyond the lease, so that late writes of a dead projector land before its successor has settled.
const LONG_SETTLE_AFTER: Duration = Duration::from_secs(8);

/// The points at which the build with crash points can abort, in the order in which a task passes them.
pub(crate) const CRASH_POINTS: [&str; 12] = [
    "pulled",
    "stored",
    "acked",
    "dead-lettered",
    "took-over",
    "sending",
    "answered",
    "settled",
    "recorded",
    "looked-up",
    "joined",
    "expiring",
];

/// A fault of the replicas. One happens at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplicaFault {
    /// kill -9 of any replica, and a new replica after a pause.
    Kill {
        /// The pause before the new replica.
        pause: Duration,
    },
    /// kill -9 of the active projector.
    KillActive {
        /// The pause before the new replica.
        pause: Duration,
    },
    /// SIGSTOP of any replica, and SIGCONT while its lease is still valid.
    Stop {
        /// The time between SIGSTOP and SIGCONT.
        lasting: Duration,
    },
    /// SIGSTOP of the active projector past its lease, so that two projectors run when it continues.
    TwoProjectors {
        /// The time between SIGSTOP and SIGCONT.
        lasting: Duration,
    },
    /// The active projector stops just before it sends a request, and continues when another has settled everything.
    /// The request that it then sends is old.
    FormerProjectorWrites {
        /// The number of the request.
        nth: u32,
        /// Whether the projector is told to end as soon as it continues, before it can know of its successor.
        drained: bool,
    },
    /// The active projector ends while its write is in flight. The write lands only when the successor has written
    /// newer values.
    LateWriteOutlives {
        /// The delay of the write.
        after: Duration,
        /// Whether the projector is told to end; otherwise it is killed, and its lease must expire.
        drained: bool,
    },
    /// SIGSTOP past `ACK_WAIT` of a replica that is not the active projector and has unacked messages.
    Redelivery,
    /// One replica, then four, then two.
    Scale,
    /// All replicas are drained, others write the same ledger to another KV namespace, and then the first ones return.
    Moved {
        /// The time in the other namespace.
        lasting: Duration,
    },
    /// A replica aborts at one of [`CRASH_POINTS`].
    Crash {
        /// The crash point.
        point: &'static str,
        /// The number of the passage at which it aborts.
        nth: u32,
        /// Whether it is the only replica at that moment.
        alone: bool,
    },
    /// KV refuses everything for a reason that only a person can fix. The active projector is killed, because it
    /// would now wait for half a minute.
    Misconfigured {
        /// The fault by which KV refuses.
        fault: Fault,
    },
}

impl ReplicaFault {
    /// The name in the counters.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Kill { .. } => "kill replica".to_owned(),
            Self::KillActive { .. } => "kill active projector".to_owned(),
            Self::Stop { .. } => "stop replica".to_owned(),
            Self::TwoProjectors { .. } => "two projectors".to_owned(),
            Self::FormerProjectorWrites { .. } => "former projector writes".to_owned(),
            Self::LateWriteOutlives { drained: true, .. } => {
                "late write outlives drained projector".to_owned()
            }
            Self::LateWriteOutlives { .. } => "late write outlives killed projector".to_owned(),
            Self::Redelivery => "redelivery".to_owned(),
            Self::Scale => "scale 1-4-2".to_owned(),
            Self::Moved { .. } => "to another namespace and back".to_owned(),
            Self::Crash { point, .. } => format!("crash at {point}"),
            Self::Misconfigured { fault } => format!("kv {}", fault.name()),
        }
    }

    /// The expected duration.
    #[must_use]
    pub(crate) fn expected(&self) -> Duration {
        match self {
            Self::Kill { pause } | Self::KillActive { pause } => *pause + Duration::from_millis(500),
            Self::Stop { lasting } => *lasting,
            Self::TwoProjectors { lasting } => *lasting + Duration::from_secs(2),
            Self::FormerProjectorWrites { .. } => LEASE + SETTLE_AFTER + Duration::from_secs(5),
            Self::LateWriteOutlives { after, .. } => *after + Duration::from_millis(1_500),
            Self::Redelivery => Duration::from_secs(5),
            Self::Scale => Duration::from_secs(3),
            Self::Moved { lasting } => *lasting + Duration::from_secs(2),
            Self::Crash { .. } => Duration::from_secs(5),
            Self::Misconfigured { .. } => Duration::from_secs(3),
        }
    }

    /// The settle time that the fault needs. With a shorter one, the fault is beyond the pipeline's guarantees.
    pub(crate) fn settle_after(&self) -> Duration {
        match self {
            Self::LateWriteOutlives { drained: false, .. } => LONG_SETTLE_AFTER,
            _ => SETTLE_AFTER,
        }
    }

    /// Draws a fault that is neither a crash nor a misconfiguration, by number.
    pub(crate) fn draw(dice: &mut Dice, number: u64) -> Self {
        let millis = |dice: &mut Dice, least, most| Duration::from_millis(dice.between(least, most));
        match number % Self::DRAWN {
            0 => Self::Kill { pause: millis(dice, 0, 1_000) },
            1 => Self::KillActive { pause: millis(dice, 0, 1_000) },
            2 => Self::Stop { lasting: millis(dice, 500, 3_500) },
            3 => Self::TwoProjectors { lasting: LEASE + millis(dice, 2_000, 4_000) },
            4 => Self::LateWriteOutlives { after: millis(dice, 1_000, 2_200), drained: true },
            5 => Self::LateWriteOutlives { after: LEASE + millis(dice, 1_500, 2_500), drained: false },
            6 => Self::FormerProjectorWrites {
                nth: u32::try_from(dice.between(1, 20)).unwrap_or(1),
                drained: dice.chance(500),
            },
            7 => Self::Redelivery,
            8 => Self::Scale,
            _ => Self::Moved { lasting: millis(dice, 1_500, 4_000) },
        }
    }

    /// The number of misconfigurations.
    pub(crate) const MISCONFIGURED: u64 = 6;

    /// The number of faults that [`Self::draw`] chooses from.
    pub(crate) const DRAWN: u64 = 10;

    /// Returns a crash at the point with this number.
    pub(crate) fn crash(dice: &mut Dice, number: u64) -> Self {
        let point = CRASH_POINTS[usize::try_from(number % CRASH_POINTS.len() as u64).unwrap_or(0)];
        // Only the projector passes some of these points, and some are rare. Only a replica that runs alone passes
        // them for sure.
        let (most, alone) = match point {
            "pulled" | "stored" | "acked" => (20, 300),
            "dead-lettered" => (2, 1_000),
            "took-over" => (1, 1_000),
            "sending" | "answered" | "settled" => (6, 1_000),
            _ => (2, 1_000),
        };
        let nth = u32::try_from(dice.between(1, most)).unwrap_or(1);
        Self::Crash { point, nth, alone: dice.chance(alone) }
    }

    /// Returns a misconfiguration by number.
    pub(crate) fn misconfigured(number: u64) -> Self {
        let fault = match number % Self::MISCONFIGURED {
            0 => Fault::RevokedToken,
            1 => Fault::UnknownAccount,
            2 => Fault::MissingNamespace,
            // The error code is that of a refused token.
            3 => Fault::EchoAuthorization { status: 500 },
            4 => Fault::MalformedToken,
            _ => Fault::Redirect { location: "http://127.0.0.1:9/".to_owned() },
        };
        Self::Misconfigured { fault }
    }
}

/// The names of the faults of requests to KV, as in the counters.
pub(crate) const KV_FAULTS: [&str; 19] = [
    "kv status 500",
    "kv status 503",
    "kv throttled",
    "kv hang",
    "kv slow",
    "kv answer lost",
    "kv answered 500 though done",
    "kv late",
    "kv late and 524",
    "kv partial",
    "kv partial unnamed",
    "kv partial overcounted",
    "kv stale",
    "kv html",
    "kv garbage",
    "kv truncated",
    "kv nulls",
    "kv refuses all",
    "kv poison",
];

/// Returns the rule for one of [`KV_FAULTS`].
///
/// KV delays nothing for longer than 2.2 s, which is well below the settle time of the replicas.
pub(crate) fn kv_rule(name: &str, dice: &mut Dice) -> Rule {
    let millis = |dice: &mut Dice, least, most| Duration::from_millis(dice.between(least, most));
    let scope = match dice.below(10) {
        0 => Scope::Reads,
        1..4 => Scope::Writes,
        _ => Scope::All,
    };
    let lasting = millis(dice, 300, 2_500);
    let times = dice.between(1, 4);
    let partial = |report, dice: &mut Dice| {
        let at_most = if dice.chance(300) { None } else { Some(dice.index(20) + 1) };
        Rule::new(Fault::Partial { at_most, report }).times(times * 2)
    };
    let rule = match name {
        // The fault lasts for a time, because reads are rare in a short one.
        "kv status 500" => Rule::new(Fault::status(500)).lasting(lasting),
        "kv status 503" => Rule::new(Fault::status(503)).on(Scope::Writes).lasting(lasting),
        "kv throttled" => Rule::new(Fault::Throttled { retry_after: Duration::from_secs(1) }).times(1),
        "kv hang" => Rule::new(Fault::Hang).on(scope).times(times),
        "kv slow" => Rule::new(Fault::Slow { extra: millis(dice, 200, 2_200) }).on(scope).times(times),
        "kv answer lost" => Rule::new(Fault::LostAnswer { status: None }).on(scope).times(times),
        "kv answered 500 though done" => {
            Rule::new(Fault::LostAnswer { status: Some(500) }).on(scope).times(times)
        }
        "kv late" => Rule::new(Fault::Late { after: millis(dice, 200, 2_200), status: None }).times(times),
        "kv late and 524" => {
            Rule::new(Fault::Late { after: millis(dice, 200, 2_200), status: Some(524) }).times(times)
        }
        "kv partial" => partial(Report::Right, dice),
        "kv partial unnamed" => partial(Report::Unnamed, dice),
        "kv partial overcounted" => partial(Report::Overcounted, dice),
        // Only tasks from before the start are affected: a replica does not read back a task that it has written itself.
        "kv stale" => Rule::new(Fault::Stale { age: Duration::from_secs(60) })
            .keys(KeyMatch::StartsWith(format!("tasks:{SEEDED}"))),
        "kv html" => Rule::new(Fault::Html).on(scope).times(times),
        "kv garbage" => Rule::new(Fault::Garbage).on(scope).times(times),
        "kv truncated" => Rule::new(Fault::Truncated).on(scope).times(times),
        "kv nulls" => Rule::new(Fault::Nulls).times(times * 2),
        // No single task is at fault here.
        "kv refuses all" => Rule::new(Fault::status(400)).on(scope).lasting(lasting),
        _ => Rule::poison(POISON, 400),
    };
    rule.named(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_its_name_and_only_the_poisonous_one_is_the_fallback() {
        let mut dice = Dice::new(1);
        for name in KV_FAULTS {
            let rule = kv_rule(name, &mut dice);
            assert_eq!(rule.name(), name);
            let poison = matches!(rule.fault(), Fault::Status { status: 400, .. });
            assert_eq!(poison, ["kv poison", "kv refuses all"].contains(&name), "{name}");
        }
    }

    #[test]
    fn all_crash_points_have_their_turn() {
        let mut dice = Dice::new(1);
        let points: std::collections::BTreeSet<_> =
            (0..12).map(|n| ReplicaFault::crash(&mut dice, n).name()).collect();
        assert_eq!(points.len(), CRASH_POINTS.len());
    }
}
