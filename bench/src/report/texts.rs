//! What each scenario's table shows, how it was measured, and what it does not show. Words only.

use crate::measurement::Scenario;

/// A column: the figure's name in the findings, its heading, and how many decimals it is shown with.
pub(super) type Column = (&'static str, &'static str, usize);

/// How a scenario is reported.
pub(super) struct Text {
    pub(super) scenario: Scenario,
    pub(super) title: &'static str,
    pub(super) how: &'static str,
    pub(super) not: &'static str,
    pub(super) columns: &'static [Column],
}

/// All of them, in the order of the report.
pub(super) const TEXTS: &[Text] = &[
    Text {
        scenario: Scenario::Limit,
        title: "Events landed per second under Cloudflare's limit",
        how: "The simulator enforces 1,200 requests in 5 minutes. A publisher keeps a backlog in front of the \
              system at all times. It creates distinct tasks over 2,000,000 ids, so that no task changes again \
              while it waits. In the rows with deletes, every tenth event deletes an old task. The token bucket is \
              full at the start, so the report uses the second half of the run. The budget allows 1,100 requests \
              in 5 minutes in the long run (the peer 1,170). If the second half made more, the sustained figure is scaled down to the budget. After the run, the benchmark waits for all published \
              events. With creates only, it compares every task with its last event. In the row with a kill, the \
              writer gets a kill -9 in the middle of the run. The keys that were in doubt then are written twice \
              and do not count as landed.",
        not: "The behavior of Cloudflare with batches of 10,000 keys at this rate: its latency is an assumption. \
              The machine runs the publisher, nats-server and the simulator on the same cores, which a real \
              installation does not.",
        columns: &[
            ("events/s that last", "events/s that last", 0),
            ("events/s, second half", "second half", 0),
            ("events/s", "whole run", 0),
            ("requests/s, second half", "requests/s, second half", 2),
            ("429s", "429s", 0),
            ("most requests in 5 minutes", "most requests in 5 min", 0),
            ("keys per request", "keys a request", 0),
            ("events published", "published", 0),
            ("events not landed", "not landed", 0),
            ("keys written twice", "written twice", 0),
            ("tasks that are not as their last event", "wrong", 0),
            ("peak memory of a replica, MB", "peak MB", 0),
        ],
    },
    Text {
        scenario: Scenario::Nolimit,
        title: "Events landed per second without a limit",
        how: "The same without a limit on requests, so that the machine is the limit. The events create distinct \
              tasks. For Durable and the floor, the stream holds all events before the clock starts, and the time \
              includes the start of the replicas. Core and the peer have no stream: their events are published \
              while the clock runs, as in the rows that say so. The floor is a program that fetches 2,000 events \
              from the same stream and makes one pipelined NATS KV put for each event. It acknowledges the events, \
              sends bulk PUTs of 10,000 keys, and does nothing else: no decoding, no comparing, no folding. In the \
              guarded floor, each put succeeds only if the key has no value yet, and a second consumer reads all \
              puts back. A ledger with several writers and a projector need both. The floor of the peer is a loop \
              of its own PUTs with its own client.",
        not: "The gain of more cores: all processes share these. Without a stream nothing is stored on the way, \
              which is cheaper and loses events (see below).",
        columns: &[
            ("events/s", "events/s", 0),
            ("events/s, middle", "without start and end", 0),
            ("CPU seconds, replicas", "CPU s, replicas", 1),
            ("CPU seconds, nats-server", "CPU s, nats-server", 1),
            ("CPU seconds, simulator", "CPU s, simulator", 1),
            ("CPU seconds, publisher", "CPU s, publisher", 1),
            ("keys written per event", "keys an event", 2),
            ("peak memory of a replica, MB", "peak MB", 0),
        ],
    },
    Text {
        scenario: Scenario::Latency,
        title: "From publishing to KV",
        how: "Events at a steady rate, each for a new task. The time runs from the moment before the publish until \
              the simulator has the task, to a millisecond. The simulator takes 100 ms for every answer here, so \
              the time above 100 ms belongs to the system. Ours keeps to the limit of Cloudflare unless the row \
              says otherwise. The peer lands at most four events a second under the limit, so from 100 events/s on \
              it runs without one. At 100 and 1,000 events/s only the events of the second half count, because the \
              bucket of requests is full at first.",
        not: "The internet. At 1 event/s there are too few events for more than the median and the worst.",
        columns: &[
            ("p50, ms", "p50 ms", 1),
            ("p99, ms", "p99 ms", 1),
            ("p99.9, ms", "p99.9 ms", 1),
            ("p50 above KV's own, ms", "p50 above KV's", 1),
            ("p99 above KV's own, ms", "p99 above KV's", 1),
            ("requests per event", "requests an event", 3),
            ("events measured", "events", 0),
            ("events that never landed", "never landed", 0),
        ],
    },
    Text {
        scenario: Scenario::Cost,
        title: "Cost of a steady load",
        how: "500 events a second over 3,000 ids: 50 % creates, 40 % updates and 10 % deletes, the same events for \
              every system. CPU time is the sum of all replicas, without nats-server, from the first event until \
              the last write. Cloudflare bills $5 for a million keys written or deleted. The peer runs without a \
              limit, because it could not finish under one.",
        not: "The cost of nats-server beyond its CPU time. The price contains no reads (the peer reads before \
              every update).",
        columns: &[
            ("CPU seconds per 100,000 events", "CPU s / 100,000 events", 1),
            ("CPU seconds, nats-server", "CPU s, nats-server", 1),
            ("requests per event", "requests an event", 3),
            ("keys written per event", "keys an event", 2),
            ("dollars per million events", "$ / million events", 2),
            ("peak memory of a replica, MB", "peak MB", 0),
        ],
    },
    Text {
        scenario: Scenario::Hot,
        title: "Differences from an in-order replay",
        how: "One connection sends 2,000 creates, updates and deletes of 10 tasks, 200 events a second, to 4 \
              replicas. After the last write, each task in KV is compared with the events in the order in which \
              they were published.",
        not: "Stale reads: reads of the simulator are fresh, and reads of Cloudflare may be a minute old, which \
              makes it worse for a system that reads.",
        columns: &[
            ("tasks that differ", "tasks that differ", 0),
            ("tasks", "of", 0),
            ("written too soon", "writes to a key within 1 s", 0),
        ],
    },
    Text {
        scenario: Scenario::Kill,
        title: "Events lost after a kill -9",
        how: "500 creates a second to 2 replicas without a limit. In the middle the writer is killed, and another \
              replica starts. Then the benchmark waits longer than any retry or redelivery takes.",
        not: "The loss of the disk of nats-server.",
        columns: &[
            ("events published", "published", 0),
            ("events lost", "lost", 0),
            ("seconds until nothing was missing, or given up", "s until complete or given up", 0),
        ],
    },
    Text {
        scenario: Scenario::Malformed,
        title: "One malformed message",
        how: "A message cut off in the middle of its JSON, between two valid ones.",
        not: "Other kinds of malformed messages.",
        columns: &[
            ("good messages landed, of 2", "good ones landed, of 2", 0),
            ("malformed messages kept, of 1", "bad one kept, of 1", 0),
            ("replicas ready afterwards, of 1", "ready afterwards, of 1", 0),
        ],
    },
    Text {
        scenario: Scenario::Start,
        title: "Start to ready",
        how: "From the start of the process to the first answer 200, of `/readyz` for ours and of `/health` for \
              the peer; median of 5 starts. Streams and consumers exist already.",
        not: "Pulling an image, and starting a pod.",
        columns: &[
            ("ms until ready", "ms", 0),
            ("ms until ready, least", "least", 0),
            ("ms until ready, most", "most", 0),
        ],
    },
    Text {
        scenario: Scenario::LedgerSize,
        title: "Cost per event by the size of the ledger",
        how: "The system first creates the tasks. Then 30,000 events arrive, three times: a third of them update \
              existing tasks, each another one, and the others create new tasks. Without a limit.",
        not: "The time of a scan of the whole ledger, as in a resync.",
        columns: &[
            ("CPU µs per event, replicas", "CPU µs an event, replicas", 1),
            ("CPU µs per event, nats-server", "nats-server", 1),
            ("µs per event", "µs an event", 1),
            ("events/s", "events/s", 0),
            ("peak memory of a replica, MB", "peak MB", 0),
        ],
    },
    Text {
        scenario: Scenario::HotTask,
        title: "Many updates to one task",
        how: "1,000 updates a second to one task for 30 seconds.",
        not: "The behavior of Cloudflare with a key that is written more than once a second: Cloudflare answers \
              429, the simulator only counts.",
        columns: &[
            ("events", "events", 0),
            ("writes", "writes", 0),
            ("events per write", "events a write", 1),
            ("most writes in a second", "most writes in a second", 0),
            ("written too soon", "writes within 1 s", 0),
            ("the last one won (1: yes)", "the last one won (1: yes)", 0),
        ],
    },
];
