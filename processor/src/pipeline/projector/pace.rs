//! When a request is worth sending. Pure.

/// The most requests of one kind that are out at a time. Four cover the latency of full batches; more would
/// only spend the budget sooner.
const MOST_IN_FLIGHT: usize = 4;

/// An idle pipeline writes at once; a busy one lets changes gather while a request is out, and sends the
/// next beside it only when that would be full.
pub(crate) fn worth_sending(ready: usize, in_flight: usize, full: usize) -> bool {
    ready > 0 && (in_flight == 0 || (ready >= full && has_place(in_flight)))
}

/// Whether one more request may go beside those that are out, whatever is in it.
pub(crate) fn has_place(in_flight: usize) -> bool {
    in_flight < MOST_IN_FLIGHT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_sends_at_once_and_busy_gathers() {
        assert!(worth_sending(1, 0, 1_000));
        assert!(!worth_sending(999, 1, 1_000));
        assert!(worth_sending(1_000, 3, 1_000));
        assert!(!worth_sending(5_000, 4, 1_000));
        assert!(!worth_sending(0, 0, 1_000));
    }
}
