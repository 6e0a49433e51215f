import { setTimeout as sleep } from 'node:timers/promises';

type Task = () => Promise<void>;

interface Waiting {
  task: Task;
  next?: Waiting;
}

/** Runs so many tasks at a time, first come, first served. What waits takes no more than the message it is. */
export class Slots {
  private first: Waiting | undefined;
  private last: Waiting | undefined;
  private unfinished = 0;
  private onIdle: (() => void) | undefined;

  constructor(private free: number) {}

  run(task: Task): void {
    this.unfinished += 1;
    if (this.free > 0) {
      this.begin(task);
      return;
    }
    const waiting: Waiting = { task };
    if (this.last === undefined) this.first = waiting;
    else this.last.next = waiting;
    this.last = waiting;
  }

  /** Lets others run while the task that calls this waits; it goes on at once then, not behind the queue. */
  async rest(milliseconds: number): Promise<void> {
    this.release();
    await sleep(milliseconds);
    this.free -= 1;
  }

  /** Resolves when nothing runs, rests or waits. */
  idle(): Promise<void> {
    return new Promise((resolve) => {
      if (this.unfinished === 0) resolve();
      else this.onIdle = resolve;
    });
  }

  private begin(task: Task): void {
    this.free -= 1;
    void task().finally(() => {
      this.unfinished -= 1;
      this.release();
      if (this.unfinished === 0) this.onIdle?.();
    });
  }

  private release(): void {
    this.free += 1;
    const waiting = this.first;
    if (this.free <= 0 || waiting === undefined) return;
    this.first = waiting.next;
    if (this.first === undefined) this.last = undefined;
    this.begin(waiting.task);
  }
}
