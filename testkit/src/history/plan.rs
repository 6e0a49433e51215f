//! The plan of a history, as its seed gives it: the events, the faults, and their times. Pure.
//!
//! The same seed gives the same plan; the processes decide when exactly a fault meets which message. Some kinds of
//! faults rotate with the seed, so that consecutive seeds cover all of them evenly.

use std::time::Duration;

use taskpipeline_simulator::Rule;

use super::crowd::Crowd;
use super::dice::Dice;
use super::edit::{self, Edit};
use super::events::{Burst, LEAST_EVENTS, Mixture, Publication, SEEDED};
use super::fault::{KV_FAULTS, ReplicaFault, SETTLE_AFTER, kv_rule};
use super::moment::{Servers, Strike};
use super::nats_fault::{self, NatsFault};

/// The interval of seeds of [`Shape::Outage`].
const OUTAGE_EVERY: u64 = 8;

/// The interval of seeds on three nats-servers, unless the caller sets the number.
const THREE_EVERY: u64 = 3;

/// The interval of seeds with a second KV namespace.
const SECOND_EVERY: u64 = 5;

/// The interval of seeds that end with a crowd of unknown updates without an answer.
const CROWD_EVERY: u64 = 4;

/// The interval of seeds with a producer whose headers no client can read.
const HOSTILE_EVERY: u64 = 3;

/// The kind of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Bursts of events, with faults all the time.
    Mixed,
    /// Events live for only eight seconds, and KV is down for longer around a burst of deletes.
    ///
    /// A replica that drops a tombstone before its delete is settled in KV has then forgotten the delete.
    Outage,
}

/// The whole plan of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The seed of the plan.
    pub seed: u64,
    /// The servers of the history.
    pub servers: Servers,
    /// The kind of the history.
    pub(crate) shape: Shape,
    /// The ids of the tasks that KV contains before the start.
    pub(crate) seeded: Vec<String>,
    /// The initial and usual number of replicas.
    pub(crate) replicas: usize,
    /// The published events; in an outage, those before it.
    pub(crate) bursts: Vec<Burst>,
    /// The events that are published while KV is down, with deletes of tasks that were created before.
    pub(crate) during_outage: Vec<Burst>,
    /// The settle time of the replicas.
    pub(crate) settle_after: Duration,
    /// The faults of the replicas.
    pub(crate) replica_faults: Vec<Strike<ReplicaFault>>,
    /// The faults of nats-server.
    pub(crate) nats_faults: Vec<Strike<NatsFault>>,
    /// The faults of requests to KV.
    pub(crate) kv_faults: Vec<Strike<Rule>>,
    /// The edits of the settings.
    pub(crate) edits: Vec<Strike<Edit>>,
    /// The ids of a burst of unknown updates.
    pub(crate) unknown: Vec<String>,
    /// The faults of requests to a second KV namespace, if the history has one.
    pub(crate) second: Option<Vec<Strike<Rule>>>,
    /// Whether the stream has so little room that it must drop events that are in the ledger.
    pub(crate) little_room: bool,
    /// Whether a producer sends headers all the time that no client can read.
    pub(crate) hostile: bool,
    /// Whether nats-server has the chart's configuration, with an account for each producer. If so, the hostile
    /// producer forges replies.
    pub(crate) accounts: bool,
    /// The part at the end, without faults.
    pub(crate) quiet: Quiet,
}

/// The part of a history without faults, which must therefore go smoothly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quiet {
    /// Events of very few tasks, so that the replicas write the same records at the same time.
    pub(crate) contention: Vec<Publication>,
    /// Large updates of tasks that nothing knows, while KV answers no look-up.
    pub(crate) crowd: Vec<Publication>,
    /// The ids of tasks that are created meanwhile.
    pub(crate) prompt: Vec<String>,
}

impl Plan {
    /// Returns the history of this seed, on as many nats-servers as the seed gives.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let three = seed % THREE_EVERY == THREE_EVERY - 1;
        Self::on(if three { Servers::Three } else { Servers::One }, seed)
    }

    /// Returns the history of this seed on these nats-servers.
    #[must_use]
    pub fn on(servers: Servers, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        if seed % OUTAGE_EVERY == OUTAGE_EVERY - 1 {
            outage(servers, seed, &mut dice)
        } else {
            mixed(servers, seed, &mut dice)
        }
    }

    /// The number of events that the history publishes.
    #[must_use]
    pub fn events(&self) -> usize {
        self.bursts.iter().chain(&self.during_outage).map(|burst| burst.publications.len()).sum()
    }
}

fn seeded(count: u64) -> Vec<String> {
    (0..count).map(|n| format!("{SEEDED}{n}")).collect()
}

fn mixed(servers: Servers, seed: u64, dice: &mut Dice) -> Plan {
    // The turn does not count outages, which have none of these faults. Otherwise, each outage would skip the same ones.
    let turn = seed - seed / OUTAGE_EVERY;
    let replica_faults = replica_faults(turn, &mut dice.fork());
    let lasting = replica_faults.iter().map(|strike| strike.fault.expected()).sum::<Duration>();
    let lasting = lasting.max(Duration::from_secs(8));
    let settle_after = replica_faults.iter().map(|strike| strike.fault.settle_after()).max();
    let kv_faults = kv_faults(seed, &mut dice.fork(), lasting);
    let mut nats_faults = nats_fault::draw(turn, servers, &mut dice.fork(), lasting);
    let edits = edit::draw(turn, &mut dice.fork(), lasting);
    let second = second(seed, &mut dice.fork(), lasting);
    let poison = kv_faults.iter().any(|strike| strike.fault.name() == "kv poison");
    let mut mixture = Mixture::new(seed, dice.fork(), 900, poison);
    let mut bursts = bursts(&mut mixture, dice, LEAST_EVENTS);
    nats_fault::fill(&mut nats_faults, &mut dice.fork(), &mut mixture);
    let crowd = Crowd::draw(&mut dice.fork());
    let quiet = quiet(seed, servers, &mut mixture);
    crowd.put_into(&mut bursts, &mut dice.fork(), &mut mixture);
    if dice.chance(300)
        && let Some(burst) = bursts.iter_mut().find(|burst| burst.acked)
    {
        burst.publications.push(mixture.too_large());
    }
    spread(&mut bursts, lasting);
    Plan {
        seed,
        servers,
        shape: Shape::Mixed,
        seeded: seeded(900).into_iter().chain(crowd.known_to_kv()).collect(),
        replicas: 2 + dice.index(2),
        bursts,
        during_outage: Vec::new(),
        settle_after: settle_after.unwrap_or(SETTLE_AFTER),
        replica_faults,
        nats_faults,
        kv_faults,
        edits,
        unknown: crowd.ids(),
        second,
        // A crowd would not fit.
        little_room: turn.is_multiple_of(2) && quiet.crowd.is_empty(),
        hostile: turn % HOSTILE_EVERY == 1,
        accounts: turn % (2 * HOSTILE_EVERY) == 1,
        quiet,
    }
}

/// Draws two crashes, a misconfiguration, and two other faults, in any order.
fn replica_faults(turn: u64, dice: &mut Dice) -> Vec<Strike<ReplicaFault>> {
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

/// Draws the faults of requests to a second namespace, if the seed has one.
fn second(seed: u64, dice: &mut Dice, lasting: Duration) -> Option<Vec<Strike<Rule>>> {
    const FAULTS: [&str; 6] =
        ["kv status 503", "kv answer lost", "kv late", "kv partial", "kv refuses all", "kv hang"];
    if !seed.is_multiple_of(SECOND_EVERY) {
        return None;
    }
    let strike = |_| {
        let name = FAULTS[dice.index(FAULTS.len())];
        Strike { at: moment(dice, lasting), fault: kv_rule(name, dice) }
    };
    let mut strikes: Vec<_> = (0..2).map(strike).collect();
    strikes.sort_by_key(|strike| strike.at);
    Some(strikes)
}

/// Draws the part without faults; see [`Quiet`]. Only servers of a cluster report to writers that another write of
/// the record is in flight.
fn quiet(seed: u64, servers: Servers, mixture: &mut Mixture) -> Quiet {
    const CONTENTION: usize = 1_500;
    const CROWD: usize = 6_000;
    const PROMPT: usize = 10;
    let mut quiet = Quiet::default();
    if servers == Servers::Three {
        quiet.contention = (0..CONTENTION).map(|n| mixture.create(&format!("hot-{}", n % 3))).collect();
    }
    if seed % CROWD_EVERY == 2 {
        let update = |n| mixture.large_update(&format!("never-in-a-crowd-{n}"));
        quiet.crowd = (0..CROWD).map(update).collect();
        quiet.prompt = (0..PROMPT).map(|n| format!("prompt-{n}")).collect();
    }
    quiet
}

fn kv_faults(seed: u64, dice: &mut Dice, lasting: Duration) -> Vec<Strike<Rule>> {
    const EACH: u64 = 6;
    let name =
        |n| KV_FAULTS[usize::try_from((seed.wrapping_mul(EACH) + n) % KV_FAULTS.len() as u64).unwrap_or(0)];
    let strike = |n| {
        // A refusal of KV must apply from the start, or the task might be in KV already. Most reads happen at the
        // start, when the replicas do not yet know the content of KV.
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

/// Stretches the pauses so that their sum is this long.
fn spread(bursts: &mut [Burst], lasting: Duration) {
    let pauses: Duration = bursts.iter().map(|burst| burst.pause).sum();
    let factor = lasting.as_secs_f64() / pauses.as_secs_f64().max(0.001);
    for burst in bursts {
        burst.pause = burst.pause.mul_f64(factor);
    }
}

fn outage(servers: Servers, seed: u64, dice: &mut Dice) -> Plan {
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
        servers,
        shape: Shape::Outage,
        seeded: seeded(300),
        replicas: 3,
        bursts: before,
        during_outage: during,
        settle_after: SETTLE_AFTER,
        replica_faults: Vec::new(),
        nats_faults: Vec::new(),
        kv_faults,
        edits: Vec::new(),
        unknown: Vec::new(),
        second: None,
        little_room: false,
        hostile: false,
        accounts: false,
        quiet: Quiet::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

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
        let (mut replicas, mut nats, mut kv, mut edits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut others: BTreeMap<&str, usize> = BTreeMap::new();
        for seed in 1_000..1_200 {
            let plan = Plan::new(seed);
            let three = plan.servers == Servers::Three;
            for (what, is_so) in [
                ("outage", plan.shape == Shape::Outage),
                ("three servers", three),
                ("outage on three servers", three && plan.shape == Shape::Outage),
                ("second namespace", plan.second.is_some()),
                ("second namespace on three servers", three && plan.second.is_some()),
                ("burst of unknown updates", plan.unknown.len() >= 300),
                ("contention", !plan.quiet.contention.is_empty()),
                ("crowd", !plan.quiet.crowd.is_empty()),
                ("hostile producer", plan.hostile),
                ("hostile producer on three servers", plan.hostile && three),
                ("forged replies", plan.hostile && plan.accounts),
                ("forged replies on three servers", plan.hostile && plan.accounts && three),
            ] {
                *others.entry(what).or_default() += usize::from(is_so);
            }
            edits.extend(plan.edits.iter().map(|strike| strike.fault.name().to_owned()));
            replicas.extend(plan.replica_faults.iter().map(|strike| strike.fault.name()));
            nats.extend(plan.nats_faults.iter().map(|strike| strike.fault.name().to_owned()));
            kv.extend(plan.kv_faults.iter().map(|strike| strike.fault.name().to_owned()));
        }
        let kinds = |all: &[String]| all.iter().cloned().collect::<BTreeSet<_>>();
        let drawn = ReplicaFault::DRAWN + CRASH_POINTS.len() as u64 + ReplicaFault::MISCONFIGURED;
        assert_eq!(kinds(&replicas).len() as u64, drawn);
        assert_eq!((kinds(&nats).len(), kinds(&kv).len()), (nats_fault::KINDS, KV_FAULTS.len()));
        assert_eq!(kinds(&edits).len(), edit::KINDS);
        for all in [&replicas, &nats, &kv, &edits] {
            for kind in kinds(all) {
                let times = all.iter().filter(|one| **one == kind).count();
                assert!(times >= 25, "{kind}: only {times}");
            }
        }
        println!("{others:?}");
        for (what, times) in others {
            let least = if what.ends_with("on three servers") { 6 } else { 20 };
            assert!(times >= least, "{what}: only {times}");
        }
    }

    #[test]
    fn on_three_servers_no_fault_is_drawn_that_only_one_can_have() {
        for seed in 0..100 {
            let of = |servers| Plan::on(servers, seed).nats_faults;
            let is_of_one = |strike: &Strike<NatsFault>| {
                matches!(
                    strike.fault,
                    NatsFault::Kill { .. } | NatsFault::Stop { .. } | NatsFault::TailLost { .. }
                )
            };
            let is_of_three = |strike: &Strike<NatsFault>| {
                matches!(strike.fault, NatsFault::NodeKilled { .. } | NatsFault::NodeStopped { .. })
            };
            assert!(!of(Servers::Three).iter().any(is_of_one) && !of(Servers::One).iter().any(is_of_three));
        }
    }
}
