//! Decides whether any request to KV is allowed now. Pure: it takes answers and times.

use std::time::Duration;

use tokio::time::Instant;

use taskpipeline_kv::{Failure, LONGEST_WAIT};

/// The time between two probes after KV refused the token or the namespace. Two requests a minute
/// are enough to notice a repair.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// The first such time after KV refused every task that was tried without a reason: those tasks may
/// be the cause.
///
/// It doubles each time, up to [`PROBE_INTERVAL`].
const FIRST_PROBE: Duration = Duration::from_secs(2);

/// The time between two probes after the daily quota was used up. The quota starts again at
/// midnight, or when somebody upgrades the plan.
const QUOTA_INTERVAL: Duration = Duration::from_secs(300);

/// The least time between two log lines that KV cannot be used as configured.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Open, or closed by an answer of KV.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed_until: Option<Instant>,
    /// The last answer was that nothing can work as configured. One request at a time probes
    /// whether that has changed.
    probing: bool,
    /// How many times in a row KV refused every task that was tried.
    refusals: u32,
    reported: Option<Instant>,
}

impl Gate {
    /// Learns from an answer; `None` is a success.
    pub(crate) fn learn(&mut self, failure: Option<&Failure>, now: Instant) {
        match failure {
            None => {
                self.probing = false;
                self.reported = None;
            }
            Some(Failure::Throttled(wait)) => self.wait(*wait, now),
            Some(Failure::Config(_)) => {
                self.probing = true;
                self.close_until(now + PROBE_INTERVAL);
            }
            Some(Failure::DailyQuota(_)) => {
                self.probing = true;
                self.close_until(now + QUOTA_INTERVAL);
            }
            Some(
                Failure::Transient(_) | Failure::TooSlow(_) | Failure::Refused(_) | Failure::TooLarge(_),
            ) => {}
        }
    }

    /// Learns that KV refused every task of an attempt to write.
    pub(crate) fn refused_all(&mut self, now: Instant) {
        let wait = FIRST_PROBE.saturating_mul(1 << self.refusals.min(8)).min(PROBE_INTERVAL);
        self.refusals = self.refusals.saturating_add(1);
        self.probing = true;
        self.close_until(now + wait);
    }

    /// Learns that KV wrote at least one task.
    pub(crate) fn wrote(&mut self) {
        self.refusals = 0;
    }

    /// Returns whether KV refused everything lately.
    pub(crate) fn is_probing(&self) -> bool {
        self.probing || self.refusals > 0
    }

    /// Returns whether a request is allowed while `in_flight` others are in flight.
    ///
    /// The error is the time to ask again, or `None` if only an answer can open the gate.
    pub(crate) fn admits(&self, in_flight: usize, now: Instant) -> Result<(), Option<Instant>> {
        match self.closed_until {
            Some(until) if now < until => Err(Some(until)),
            _ if self.probing && in_flight > 0 => Err(None),
            _ => Ok(()),
        }
    }

    /// Returns whether it is time to log again that KV cannot be used as configured.
    pub(crate) fn may_report(&mut self, now: Instant) -> bool {
        let may = self.reported.is_none_or(|at| now.duration_since(at) >= REPORT_INTERVAL);
        if may {
            self.reported = Some(now);
        }
        may
    }

    /// Closes the gate for `time`, which KV asked for, but at most [`LONGEST_WAIT`].
    pub(crate) fn wait(&mut self, time: Duration, now: Instant) {
        self.close_until(now + time.min(LONGEST_WAIT));
    }

    fn close_until(&mut self, until: Instant) {
        self.closed_until = self.closed_until.max(Some(until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_429_closes_it_for_as_long_as_it_says() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        gate.learn(Some(&Failure::Throttled(Duration::from_secs(7))), now);
        gate.learn(None, now); // The answer to an earlier request.
        let open = now + Duration::from_secs(7);
        assert_eq!(gate.admits(0, open - Duration::from_millis(1)), Err(Some(open)));
        assert_eq!(gate.admits(3, open), Ok(()));
    }

    #[test]
    fn a_refused_token_is_probed_by_one_request_every_half_minute() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        gate.learn(Some(&Failure::Config("no".to_owned())), now);
        assert!(gate.admits(0, now + Duration::from_secs(29)).is_err());
        let probe = now + PROBE_INTERVAL;
        assert_eq!(gate.admits(0, probe), Ok(()));
        assert_eq!(gate.admits(1, probe), Err(None));
        gate.learn(None, probe);
        assert_eq!(gate.admits(1, probe), Ok(()));
    }

    #[test]
    fn where_every_task_is_refused_it_is_probed_soon_and_then_less_and_less_often() {
        let (mut gate, mut now) = (Gate::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..6 {
            gate.refused_all(now);
            let Err(Some(until)) = gate.admits(0, now) else { panic!("open") };
            waits.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(waits, [2, 4, 8, 16, 30, 30]);
        gate.learn(None, now);
        assert!(gate.is_probing(), "a read says nothing about writes");
        gate.wrote();
        assert!(!gate.is_probing());
    }

    #[test]
    fn no_wait_that_kv_asks_for_is_too_long_to_be_counted() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        gate.learn(Some(&Failure::Throttled(Duration::MAX)), now);
        gate.wait(Duration::MAX, now);
        assert_eq!(gate.admits(0, now + LONGEST_WAIT), Ok(()));
    }

    #[test]
    fn a_used_up_quota_is_probed_every_five_minutes() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        gate.learn(Some(&Failure::DailyQuota("no".to_owned())), now);
        assert_eq!(gate.admits(0, now + QUOTA_INTERVAL / 2), Err(Some(now + QUOTA_INTERVAL)));
        assert_eq!(gate.admits(0, now + QUOTA_INTERVAL), Ok(()));
    }

    #[test]
    fn it_is_said_once_a_minute_until_it_is_mended() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        assert!(gate.may_report(now));
        assert!(!gate.may_report(now + Duration::from_secs(30)));
        assert!(gate.may_report(now + Duration::from_secs(60)));
        gate.learn(None, now + Duration::from_secs(61));
        assert!(gate.may_report(now + Duration::from_secs(62)), "a new fault is news");
    }
}
