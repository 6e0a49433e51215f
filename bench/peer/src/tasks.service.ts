import { Inject, Injectable, Logger } from '@nestjs/common';

import type { Task, TaskCreated, TaskDeleted, TaskUpdated } from './events.js';
import { KvClient } from './kv.client.js';
import { Pace } from './pace.js';
import { isTransient, RETRY_DELAYS_MS } from './retry.js';
import { Slots } from './slots.js';

@Injectable()
export class TasksService {
  private readonly logger = new Logger(TasksService.name);

  constructor(
    @Inject(KvClient) private readonly kv: KvClient,
    @Inject(Pace) private readonly pace: Pace,
    @Inject(Slots) private readonly slots: Slots,
  ) {}

  create({ correlationId, data }: TaskCreated): Promise<void> {
    const now = new Date().toISOString();
    const task: Task = { ...data, createdAt: now, updatedAt: now };
    return this.withRetries(correlationId, 1, () => this.kv.put(key(task.id), JSON.stringify(task)));
  }

  update({ correlationId, data }: TaskUpdated): Promise<void> {
    return this.withRetries(correlationId, 2, async () => {
      const stored = await this.kv.get(key(data.id));
      if (stored === undefined) {
        this.logger.warn(`[${correlationId}] No such task to update`);
        return;
      }
      const task: Task = { ...(JSON.parse(stored) as Task), ...data, updatedAt: new Date().toISOString() };
      await this.kv.put(key(data.id), JSON.stringify(task));
    });
  }

  delete({ correlationId, data }: TaskDeleted): Promise<void> {
    return this.withRetries(correlationId, 1, () => this.kv.delete(key(data.id)));
  }

  /** Up to five attempts at an operation of so many requests; what another attempt cannot mend is thrown at once. */
  private async withRetries(correlationId: string, requests: number, operation: () => Promise<void>): Promise<void> {
    for (const delay of RETRY_DELAYS_MS) {
      try {
        await this.pace.turn(requests);
        return await operation();
      } catch (error) {
        if (!isTransient(error)) throw error;
        this.logger.warn(`[${correlationId}] Again in ${delay / 1_000} s: ${error}`);
      }
      await this.slots.rest(delay);
    }
    await this.pace.turn(requests);
    await operation();
  }
}

const key = (id: string) => `tasks:${id}`;
