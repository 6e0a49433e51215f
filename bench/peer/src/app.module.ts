import { Module } from '@nestjs/common';

import { KvClient } from './kv.client.js';
import { Pace } from './pace.js';
import { peerSettings } from './settings.js';
import { Slots } from './slots.js';
import { TasksController } from './tasks.controller.js';
import { TasksService } from './tasks.service.js';

const { CONCURRENCY, REQUESTS_PER_SECOND, ...settings } = peerSettings();

// A paced peer needs few slots; with more, a retry would wait behind all of them for its turn.
const slots = REQUESTS_PER_SECOND === undefined ? CONCURRENCY : Math.ceil(2 * REQUESTS_PER_SECOND);

@Module({
  controllers: [TasksController],
  providers: [
    TasksService,
    { provide: KvClient, useFactory: () => new KvClient(settings, CONCURRENCY) },
    { provide: Pace, useFactory: () => new Pace(REQUESTS_PER_SECOND) },
    { provide: Slots, useFactory: () => new Slots(Math.min(slots, CONCURRENCY)) },
  ],
})
export class AppModule {}
