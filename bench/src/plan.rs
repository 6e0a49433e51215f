//! The measurements of a run, their order, and the expected duration. Pure.

use std::time::Duration;

use crate::measurement::{Job, Knobs, Scenario};
use crate::system::{Kind, System};

/// The kind of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Everything, within an hour.
    Full,
    /// A short look at everything, within five minutes.
    Quick,
}

impl Plan {
    /// The name at the end of the folder's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Quick => "quick",
        }
    }

    /// All measurements of the run.
    pub(crate) fn jobs(self) -> Vec<Job> {
        match self {
            Self::Full => full(),
            Self::Quick => quick(),
        }
    }
}

fn system(kind: Kind, replicas: usize) -> System {
    System { kind, replicas }
}

fn knobs() -> Knobs {
    Knobs { ids: 2_000_000, ..Knobs::default() }
}

fn events(events: u64) -> Knobs {
    Knobs { events, ..knobs() }
}

fn seconds(seconds: u64) -> Knobs {
    Knobs { seconds, ..knobs() }
}

/// The measurements so far.
#[derive(Default)]
struct Jobs(Vec<Job>);

impl Jobs {
    fn add(&mut self, scenario: Scenario, system: System, knobs: Knobs) {
        // An equal measurement is the next round of it.
        let same = |job: &&Job| (job.scenario, job.system, &job.knobs) == (scenario, system, &knobs);
        let round = self.0.iter().rfind(same).map_or(1, |job| job.round + 1);
        self.0.push(Job { scenario, system, knobs, round });
    }

    /// Adds the latency at these rates.
    ///
    /// Under the limit the peer lands at most four events a second, and a faster load would wait indefinitely. So the
    /// peer is measured without a limit.
    fn latency(&mut self, rate: u64, kinds: &[Kind], time: u64) {
        for kind in kinds {
            let unlimited = *kind == Kind::Peer && rate > 1;
            self.add(Scenario::Latency, system(*kind, 1), Knobs { rate, unlimited, ..seconds(time) });
        }
    }
}

fn full() -> Vec<Job> {
    use Kind::{Core, Durable, Floor, GuardedFloor, Peer, PeerFloor};
    let mut jobs = Jobs::default();
    // The order is round by round, so that other load on the machine affects all of them.
    for _ in 0..3 {
        for (kind, replicas) in [
            (Floor, 1),
            (GuardedFloor, 1),
            (Durable, 1),
            (Durable, 2),
            (Durable, 4),
            (Core, 1),
            (Core, 2),
            (Core, 4),
        ] {
            jobs.add(Scenario::Nolimit, system(kind, replicas), events(300_000));
        }
        jobs.add(Scenario::Nolimit, system(Durable, 1), Knobs { live: true, ..events(300_000) });
        for (kind, replicas) in [(PeerFloor, 1), (Peer, 1), (Peer, 4)] {
            jobs.add(Scenario::Nolimit, system(kind, replicas), events(15_000));
        }
    }
    jobs.add(Scenario::Limit, system(Durable, 4), Knobs { failover: true, ..seconds(900) });
    for (kind, replicas, time) in
        [(Durable, 1, 60), (Durable, 2, 60), (Core, 1, 40), (Core, 2, 40), (Core, 4, 40), (Peer, 1, 60)]
    {
        jobs.add(Scenario::Limit, system(kind, replicas), seconds(time));
    }
    for (kind, replicas) in [(Durable, 4), (Core, 1), (Peer, 1)] {
        jobs.add(Scenario::Limit, system(kind, replicas), Knobs { deletes: true, ..seconds(60) });
    }
    for (rate, time) in [(1, 45), (100, 40), (1_000, 30)] {
        jobs.latency(rate, &[Durable, Core, Peer], time);
    }
    for rate in [100, 1_000] {
        let load = Knobs { rate, unlimited: true, ..seconds(30) };
        jobs.add(Scenario::Latency, system(Durable, 1), load);
    }
    for (kind, replicas) in [(Durable, 1), (Durable, 4), (Core, 1), (Peer, 1)] {
        let load = Knobs { unlimited: kind == Peer, ..seconds(20) };
        jobs.add(Scenario::Cost, system(kind, replicas), load);
    }
    for kind in [Durable, Core, Peer] {
        let unlimited = kind == Peer;
        jobs.add(Scenario::Hot, system(kind, 4), Knobs { unlimited, ..knobs() });
        jobs.add(Scenario::Kill, system(kind, 2), Knobs { unlimited: true, ..seconds(16) });
        jobs.add(Scenario::HotTask, system(kind, 1), Knobs { unlimited, ..seconds(30) });
        jobs.add(Scenario::Malformed, system(kind, 1), knobs());
        jobs.add(Scenario::Start, system(kind, 1), knobs());
    }
    for tasks in [10_000, 100_000, 1_000_000] {
        jobs.add(Scenario::LedgerSize, system(Durable, 1), Knobs { tasks, ..knobs() });
    }
    jobs.0
}

fn quick() -> Vec<Job> {
    use Kind::{Core, Durable, Floor, Peer, PeerFloor};
    let mut jobs = Jobs::default();
    for (kind, count) in
        [(Floor, 100_000), (Durable, 100_000), (Core, 100_000), (PeerFloor, 4_000), (Peer, 4_000)]
    {
        jobs.add(Scenario::Nolimit, system(kind, 1), events(count));
    }
    for (kind, replicas) in [(Durable, 4), (Peer, 1)] {
        jobs.add(Scenario::Limit, system(kind, replicas), seconds(12));
    }
    jobs.latency(1, &[Durable, Peer], 8);
    jobs.latency(1_000, &[Durable, Peer], 6);
    for kind in [Durable, Peer] {
        let unlimited = kind == Peer;
        jobs.add(Scenario::Cost, system(kind, 1), Knobs { unlimited, ..seconds(5) });
        jobs.add(Scenario::Malformed, system(kind, 1), knobs());
        jobs.add(Scenario::Start, system(kind, 1), knobs());
    }
    jobs.add(Scenario::Hot, system(Durable, 4), events(400));
    jobs.add(Scenario::Hot, system(Peer, 4), Knobs { unlimited: true, ..events(400) });
    jobs.add(Scenario::Kill, system(Durable, 2), Knobs { unlimited: true, ..seconds(4) });
    jobs.add(Scenario::HotTask, system(Durable, 1), seconds(4));
    jobs.add(Scenario::LedgerSize, system(Durable, 1), Knobs { tasks: 10_000, ..knobs() });
    jobs.0
}

/// The approximate duration of a measurement on two cores, including preparation and clean-up.
pub(crate) fn expected(job: &Job) -> Duration {
    let Knobs { events, seconds, tasks, failover, .. } = &job.knobs;
    let peer = matches!(job.system.kind, Kind::Peer | Kind::PeerFloor);
    let seconds = match job.scenario {
        Scenario::Nolimit if peer => 5 + events / 1_000,
        Scenario::Nolimit if job.system.kind.is_floor() => 4 + events / 40_000,
        Scenario::Nolimit => 4 + events / if job.system.kind == Kind::Core { 40_000 } else { 20_000 },
        Scenario::Limit => seconds + if *failover { 90 } else { 14 },
        Scenario::Latency => seconds + 2,
        Scenario::Cost => seconds + 8,
        Scenario::Hot => 16 + if *events == 0 { 10 } else { events / 200 },
        Scenario::Kill => seconds + if job.system.kind == Kind::Durable { 32 } else { 42 },
        Scenario::Malformed => 8,
        Scenario::Start => 8,
        Scenario::LedgerSize => 20 + tasks / 9_000,
        Scenario::HotTask => seconds + 15,
    };
    Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(plan: Plan) -> Duration {
        plan.jobs().iter().map(expected).sum()
    }

    #[test]
    fn a_full_run_takes_less_than_an_hour_and_a_quick_one_five_minutes() {
        assert!(total(Plan::Full) < Duration::from_secs(58 * 60), "{:?}", total(Plan::Full));
        assert!(total(Plan::Quick) < Duration::from_secs(320), "{:?}", total(Plan::Quick));
    }

    #[test]
    fn no_measurement_is_made_twice() {
        for plan in [Plan::Full, Plan::Quick] {
            let jobs = plan.jobs();
            for (index, job) in jobs.iter().enumerate() {
                assert!(!jobs[..index].contains(job), "{job}");
            }
        }
    }
}
