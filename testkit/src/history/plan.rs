//! A history as its seed has it: what is published when, and what goes wrong when. The same seed gives the
//! same plan; when exactly a fault meets which message is up to the processes. Pure.
//!
//! Kinds of faults that are wanted evenly go round with the seed, so that consecutive seeds have them all.

use std::time::Duration;

use taskpipeline_simulator::Rule;

use super::dice::Dice;
use super::events::{Mixture, Publication, SEEDED};
use super::fault::{KV_FAULTS, NatsFault, ReplicaFault, SETTLE_AFTER, kv_rule};

/// The least that is published.
pub(crate) const LEAST_EVENTS: usize = 10_000;

/// Every so many seeds are of [`Shape::Outage`].
const OUTAGE_EVERY: u64 = 8;

/// What kind of history it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Bursts of events, and faults all along.
    Mixed,
    /// Events live for eight seconds only, and KV is out for longer around a burst of deletes: whoever lets a
    /// tombstone go before its delete is settled in KV has forgotten it by then.
    Outage,
}

/// Some events that are published together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Burst {
    /// What.
    pub(crate) publications: Vec<Publication>,
    /// Each published again until it is acked; otherwise plainly and once.
    pub(crate) acked: bool,
    /// How long nothing comes after it.
    pub(crate) pause: Duration,
}

/// A fault and its moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strike<F> {
    /// After the start; later where one before it takes longer.
    pub(crate) at: Duration,
    /// What.
    pub(crate) fault: F,
}

/// All of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it was made of.
    pub seed: u64,
    /// What kind it is.
    pub(crate) shape: Shape,
    /// The ids of the tasks that KV holds before the start.
    pub(crate) seeded: Vec<String>,
    /// How many replicas there are at first, and mostly.
    pub(crate) replicas: usize,
    /// What is published; in an outage, before it.
    pub(crate) bursts: Vec<Burst>,
    /// In an outage: published while KV is out, deletes of what was created before among it.
    pub(crate) during_outage: Vec<Burst>,
    /// The settle time that the replicas are given.
    pub(crate) settle_after: Duration,
    /// What befalls the replicas.
    pub(crate) replica_faults: Vec<Strike<ReplicaFault>>,
    /// What befalls nats-server.
    pub(crate) nats_faults: Vec<Strike<NatsFault>>,
    /// What befalls requests to KV.
    pub(crate) kv_faults: Vec<Strike<Rule>>,
}

impl Plan {
    /// The history of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        if seed % OUTAGE_EVERY == OUTAGE_EVERY - 1 { outage(seed, &mut dice) } else { mixed(seed, &mut dice) }
    }

    /// How many events it publishes.
    #[must_use]
    pub fn events(&self) -> usize {
        self.bursts.iter().chain(&self.during_outage).map(|burst| burst.publications.len()).sum()
    }
}

fn seeded(count: u64) -> Vec<String> {
    (0..count).map(|n| format!("{SEEDED}{n}")).collect()
}

fn mixed(seed: u64, dice: &mut Dice) -> Plan {
    let replica_faults = replica_faults(seed, &mut dice.fork());
    let lasting = replica_faults.iter().map(|strike| strike.fault.expected()).sum::<Duration>();
    let lasting = lasting.max(Duration::from_secs(8));
    let settle_after = replica_faults.iter().map(|strike| strike.fault.settle_after()).max();
    let kv_faults = kv_faults(seed, &mut dice.fork(), lasting);
    let mut nats_faults = nats_faults(&mut dice.fork(), lasting);
    let poison = kv_faults.iter().any(|strike| strike.fault.name() == "kv poison");
    let mut mixture = Mixture::new(seed, dice.fork(), 900, poison);
    let mut bursts = bursts(&mut mixture, dice, LEAST_EVENTS);
    for strike in &mut nats_faults {
        if let NatsFault::TailLost { tail, .. } = &mut strike.fault {
            tail.extend((0..dice.between(1, 150)).map(|_| mixture.draw()));
        }
    }
    if dice.chance(300)
        && let Some(burst) = bursts.iter_mut().find(|burst| burst.acked)
    {
        burst.publications.push(mixture.too_large());
    }
    spread(&mut bursts, lasting);
    Plan {
        seed,
        shape: Shape::Mixed,
        seeded: seeded(900),
        replicas: 2 + dice.index(2),
        bursts,
        during_outage: Vec::new(),
        settle_after: settle_after.unwrap_or(SETTLE_AFTER),
        replica_faults,
        nats_faults,
        kv_faults,
    }
}

/// Two crashes, a misconfiguration, and two of the rest, in any order.
fn replica_faults(seed: u64, dice: &mut Dice) -> Vec<Strike<ReplicaFault>> {
    // Counted without the outages, which have none of these: or each outage would skip the same ones.
    let turn = seed - seed / OUTAGE_EVERY;
    let numbers = [turn.wrapping_mul(2), turn.wrapping_mul(2).wrapping_add(1)];
    let mut faults: Vec<_> = numbers.iter().map(|number| ReplicaFault::crash(dice, *number)).collect();
    faults.push(ReplicaFault::misconfigured(turn));
    faults.extend(numbers.iter().map(|number| ReplicaFault::draw(dice, *number)));
    dice.shuffle(&mut faults);
    let mut at = Duration::from_millis(500);
    let mut strikes = Vec::new();
    for fault in faults {
        at += Duration::from_millis(dice.between(0, 500));
        let expected = fault.expected();
        strikes.push(Strike { at, fault });
        at += expected;
    }
    strikes
}

/// A kill or a stop, and now and then a stream that is not what it was.
fn nats_faults(dice: &mut Dice, lasting: Duration) -> Vec<Strike<NatsFault>> {
    let mut which = vec![dice.index(2)];
    if dice.chance(400) {
        which.push(2 + dice.index(2));
    }
    dice.shuffle(&mut which);
    let mut moments: Vec<_> = which.iter().map(|_| moment(dice, lasting)).collect();
    moments.sort_unstable();
    let draw = |(at, which)| Strike { at, fault: NatsFault::draw(dice, which) };
    moments.into_iter().zip(which).map(draw).collect()
}

fn kv_faults(seed: u64, dice: &mut Dice, lasting: Duration) -> Vec<Strike<Rule>> {
    const EACH: u64 = 6;
    let name =
        |n| KV_FAULTS[usize::try_from((seed.wrapping_mul(EACH) + n) % KV_FAULTS.len() as u64).unwrap_or(0)];
    let strike = |n| {
        // What KV refuses it refuses from the start, or the task might be there already. Reads happen mostly
        // at the start, when the replicas do not yet know what KV knows.
        let early = ["kv poison", "kv stale"].contains(&name(n));
        let at = if early { Duration::ZERO } else { moment(dice, lasting) };
        Strike { at, fault: kv_rule(name(n), dice) }
    };
    let mut strikes: Vec<_> = (0..EACH).map(strike).collect();
    strikes.sort_by_key(|strike| strike.at);
    strikes
}

fn moment(dice: &mut Dice, lasting: Duration) -> Duration {
    let most = u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX).saturating_sub(1_000);
    Duration::from_millis(dice.between(300, most.max(300)))
}

fn bursts(mixture: &mut Mixture, dice: &mut Dice, least: usize) -> Vec<Burst> {
    let (mut bursts, mut events) = (Vec::new(), 0);
    while events < least {
        let publications: Vec<_> = (0..dice.between(20, 220)).map(|_| mixture.draw()).collect();
        events += publications.len();
        let pause = Duration::from_millis(dice.between(0, 200));
        bursts.push(Burst { publications, acked: dice.chance(750), pause });
    }
    bursts
}

/// Stretches the pauses so that all of them take so long together.
fn spread(bursts: &mut [Burst], lasting: Duration) {
    let pauses: Duration = bursts.iter().map(|burst| burst.pause).sum();
    let factor = lasting.as_secs_f64() / pauses.as_secs_f64().max(0.001);
    for burst in bursts {
        burst.pause = burst.pause.mul_f64(factor);
    }
}

fn outage(seed: u64, dice: &mut Dice) -> Plan {
    let lasting = Duration::from_secs(5);
    let kv_faults = kv_faults(seed, &mut dice.fork(), lasting);
    let poison = kv_faults.iter().any(|strike| strike.fault.name() == "kv poison");
    let mut mixture = Mixture::new(seed, dice.fork(), 300, poison);
    let mut before = bursts(&mut mixture, dice, LEAST_EVENTS - 3_000);
    let doomed: Vec<_> = (0..400).map(|n| format!("doomed-{n}")).collect();
    let creates = doomed.iter().map(|id| mixture.create(id)).collect();
    let pause = Duration::from_millis(200);
    before.push(Burst { publications: creates, acked: true, pause });
    spread(&mut before, lasting);
    let deletes = doomed.iter().map(|id| mixture.delete(id)).collect();
    let mut during = vec![Burst { publications: deletes, acked: true, pause }];
    during.extend(bursts(&mut mixture, dice, 3_000));
    spread(&mut during, Duration::from_secs(9));
    Plan {
        seed,
        shape: Shape::Outage,
        seeded: seeded(300),
        replicas: 3,
        bursts: before,
        during_outage: during,
        settle_after: SETTLE_AFTER,
        replica_faults: Vec::new(),
        nats_faults: Vec::new(),
        kv_faults,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::history::fault::CRASH_POINTS;

    #[test]
    fn a_seed_gives_the_same_plan_again_and_another_seed_another() {
        for seed in [0, 7, u64::MAX] {
            assert_eq!(Plan::new(seed), Plan::new(seed), "{seed}");
        }
        assert_ne!(Plan::new(1).bursts, Plan::new(2).bursts);
    }

    #[test]
    fn every_plan_has_ten_thousand_events_and_four_faults() {
        for seed in 0..40 {
            let plan = Plan::new(seed);
            assert!(plan.events() >= LEAST_EVENTS, "{seed}: {}", plan.events());
            let faults = plan.replica_faults.len() + plan.nats_faults.len() + plan.kv_faults.len();
            assert!(faults >= 4, "{seed}: {faults}");
        }
    }

    #[test]
    fn two_hundred_seeds_have_every_kind_of_fault_often() {
        let (mut replicas, mut nats, mut kv) = (Vec::new(), Vec::new(), Vec::new());
        let mut outages = 0;
        for seed in 1_000..1_200 {
            let plan = Plan::new(seed);
            outages += usize::from(plan.shape == Shape::Outage);
            replicas.extend(plan.replica_faults.iter().map(|strike| strike.fault.name()));
            nats.extend(plan.nats_faults.iter().map(|strike| strike.fault.name().to_owned()));
            kv.extend(plan.kv_faults.iter().map(|strike| strike.fault.name().to_owned()));
        }
        let kinds = |all: &[String]| all.iter().cloned().collect::<BTreeSet<_>>();
        let drawn = ReplicaFault::DRAWN + CRASH_POINTS.len() as u64 + ReplicaFault::MISCONFIGURED;
        assert_eq!(kinds(&replicas).len() as u64, drawn);
        assert_eq!((kinds(&nats).len(), kinds(&kv).len()), (4, KV_FAULTS.len()));
        for all in [&replicas, &nats, &kv] {
            for kind in kinds(all) {
                let times = all.iter().filter(|one| **one == kind).count();
                assert!(times >= 25, "{kind}: only {times}");
            }
        }
        assert!(outages >= 20, "{outages}");
    }
}
