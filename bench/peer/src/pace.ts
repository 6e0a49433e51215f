import { setTimeout as sleep } from 'node:timers/promises';

/** Spreads requests evenly, first come, first served. Without a rate nobody waits. */
export class Pace {
  private readonly intervalMs: number;
  private next = 0;

  constructor(requestsPerSecond: number | undefined) {
    this.intervalMs = requestsPerSecond === undefined ? 0 : 1_000 / requestsPerSecond;
  }

  /** The turn of an operation that makes this many requests. */
  turn(requests: number): Promise<void> | undefined {
    if (this.intervalMs === 0) return undefined;
    const now = performance.now();
    const at = Math.max(now, this.next);
    this.next = at + requests * this.intervalMs;
    return sleep(Math.ceil(at - now));
  }
}
